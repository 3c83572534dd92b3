"""The `objdb` command, a module for each group of subcommands."""

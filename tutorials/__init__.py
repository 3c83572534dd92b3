"""Programs that teach objdb by using it: each folder is one, with its text beside its code."""

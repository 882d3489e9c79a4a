"""Parts of the control benchmark."""

"""What the judge's table measures besides right and wrong, one idea a file."""

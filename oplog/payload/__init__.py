"""What a record holds: the shapes of logged types, row effects, and their bytes."""

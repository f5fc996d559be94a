"""What keeps the energy of everything else up: contrast, regularisers. One loss a file."""

"""Other tools' files, in and out: dictionaries, control vectors, pages of features."""

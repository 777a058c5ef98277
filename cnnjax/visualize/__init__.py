"""Looking into networks: one study a file, arrays in, arrays out."""

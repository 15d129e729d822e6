"""The trainable layers: cut off, differentiated, fitted."""

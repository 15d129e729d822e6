"""The stages of a conversion, between loading and writing; `converter.pipeline` puts them in order."""

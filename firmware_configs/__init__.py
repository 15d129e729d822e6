"""Device profiles as data: one TOML file per kind of device, read by `edge.contract.profile`. No code."""

"""The contract of the HTTP API as tables: a row for each behavior of OVMS, OpenAI and Vecmill's extensions."""

"""The contract as a table: one row a behaviour, written from the issue and from what OVMS and OpenAI do."""

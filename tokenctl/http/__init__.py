"""The bundled HTTP endpoint: one table of endpoints, from which routes, validation and OpenAPI come."""

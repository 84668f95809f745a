"""How the service speaks HTTP: problems, pages, middleware, health, route dependencies."""

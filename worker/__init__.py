"""The worker: computes, has no database and no port; it calls the service and is never called."""

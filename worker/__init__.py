"""The worker: computes, owns no database and no port; it calls the service and is never called."""

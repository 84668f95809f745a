"""The long-lived Ray driver of one cluster: capacity, gangs, sync."""

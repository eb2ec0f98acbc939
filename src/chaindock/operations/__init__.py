"""HTTP servers, the operations endpoint, and the JSON of the admin API."""

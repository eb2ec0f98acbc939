"""Rich queries: CouchDB's Mango over the JSON documents of a namespace."""

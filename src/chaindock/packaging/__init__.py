"""The Fabric package format, package ids and the package store."""

"""What makes a cluster, as documents that people apply: facts -> manifests. Nothing here reads or writes anything."""

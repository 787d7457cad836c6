"""The same numbers sooner: pieces that fit the cache, whole batches from a loader of tensors."""

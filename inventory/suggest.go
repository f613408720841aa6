package inventory

// DidYouMean is the next step after an unknown name in any file of ours: the
// nearest known one, or all of them where none is near.
func DidYouMean(name string, known []string) string { return didYouMean(name, known) }

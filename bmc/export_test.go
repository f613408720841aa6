package bmc

// InAHurry shortens every wait to a fifth.
func InAHurry(t Target) Target {
	t.hurry = 5
	return t
}

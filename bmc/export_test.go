package bmc

// InAHurry shortens every wait to a fifth.
func InAHurry(t Target) Target {
	t.hurry = 5
	return t
}

// InGreatHurry shortens them so far that one can be waited out.
func InGreatHurry(t Target) Target {
	t.hurry = 200
	return t
}

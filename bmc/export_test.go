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

// Rest closes a Client's connection, as between the conversations of a Fleet.
func Rest(c Client) { c.(*session).rest() }

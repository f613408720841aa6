package bmc

import "time"

// Hasten shortens the wait after a command that was not answered.
func Hasten(c Client, unknown time.Duration) { c.(*session).unknown = unknown }

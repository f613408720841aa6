package provision

import (
	"time"

	"recast/bmc"
	"recast/inventory"
)

// Event is something that happened to one machine. It carries its own time.
type Event interface{ event() }

// Started: the rollout, or an operator, lets the machine begin.
type Started struct {
	Purpose    Purpose
	Generation inventory.Digest
	Rendered   inventory.Digest
	Epoch      string
	Erase      bool
	Consent    *Consent // what Erase is about; nil: nothing was known then
	Quick      bool     // of a wipe
	Plan       inventory.Digest
	By         string
}

// BMCDone is the outcome of an action on the BMC.
type BMCDone struct {
	Action Action
	Err    string
	// Final: trying again cannot help (a refused password, a wrong certificate).
	Final bool
	// Next mends it, "" nothing that is known here.
	Next string
}

// BootWaits: the machine asked what to boot and was told that its turn to fetch
// the ramdisk has not come.
type BootWaits struct{}

// BootServed: the machine asked what to boot and was given the ramdisk.
type BootServed struct{}

// Claimed: the ramdisk presented the right nonce; see decideClaim.
type Claimed struct {
	Claim  ClaimState
	Resume bool // a later boot of the same attempt
	// Doubt is why its identity is less than the way it booted by could give; "" none.
	Doubt string
}

// Inspected: the ramdisk reported what the machine is; see decideDisk.
type Inspected struct {
	Facts    inventory.Facts
	Decision DiskDecision
	Declared *inventory.Machine // as the decision saw it
}

// Reported is one report of the agent, already checked against fence and boot.
type Reported struct {
	Report inventory.Report
	// Damaged: the server's own copy of this image is bad, so that trying again
	// is useless until it is mended.
	Damaged inventory.Digest
	// Measured is what its TPM said, nil where it was not asked.
	Measured *Measurement
}

// Renewed prolongs the claim's lease.
type Renewed struct{ Until time.Time }

// Running: the installed system reported itself, with the token of the write that
// made it.
type Running struct {
	Report   inventory.BootReport
	Declared *inventory.Machine // nil: it is not declared any more
}

// Ticked: time passed.
type Ticked struct{}

// Aborted by an operator.
type Aborted struct{ By string }

// Held by an operator.
type Held struct{ Hold Hold }

// Suspected: the machine's claims do not fit together; hands off.
type Suspected struct {
	Reason string
	Cure   string // "" unknown
}

// Noticed: something that a person should know of, and that stops nothing.
type Noticed struct {
	Finding string // "" nothing any more
	About   string // what findings that it replaces begin with; "" none
}

// Looked: what a machine's BMC shows, while nothing is done to it.
type Looked struct {
	Power bmc.PowerState
	Board *Board // nil: not asked
	Owner boardOwner
}

// Enrolled: a person has said that the BMC is the machine's.
type Enrolled struct {
	Finding string // what it offers to anybody; "" nothing
	Board   Board  // that it was on then, with who said so; nothing where it does not tell
}

// Reverted: what is wanted again is what an untouched machine holds.
type Reverted struct{}

// Mended: the image that the machine failed for is whole again.
type Mended struct{}

func (Started) event()    {}
func (BMCDone) event()    {}
func (BootServed) event() {}
func (BootWaits) event()  {}
func (Claimed) event()    {}
func (Inspected) event()  {}
func (Reported) event()   {}
func (Renewed) event()    {}
func (Running) event()    {}
func (Ticked) event()     {}
func (Aborted) event()    {}
func (Held) event()       {}
func (Suspected) event()  {}
func (Noticed) event()    {}
func (Looked) event()     {}
func (Enrolled) event()   {}
func (Reverted) event()   {}
func (Mended) event()     {}

// Action is what the engine shall do to the machine's BMC next. Each is safe to
// repeat, and its outcome comes back as BMCDone.
type Action string

const (
	ActOff Action = "power off"
	ActArm Action = "set network boot" // or what is declared in its place; see armWords
	ActOn  Action = "power on"
	// ActClear takes back what ActArm did.
	ActClear Action = "clear the boot override"
	// ActRestore is ActOn for a machine that somebody else switched off, if its board
	// is still the same.
	ActRestore Action = "power on again"
)

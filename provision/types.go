// Package provision is the brain: what every machine should do next.
//
// Pure: boot.go (what may this machine boot now), step.go (the state machine),
// plan.go and rollout.go. Impure: engine.go and its neighbours, the one writer
// of Status. The pure half gets the time passed in and opens nothing.
package provision

import (
	"fmt"
	"time"

	"recast/inventory"
)

// Phase is where a machine is in its life. Ironic's words.
type Phase string

const (
	Discovered Phase = "discovered" // seen, not declared
	Inspecting Phase = "inspecting" // booted to be looked at, nothing more
	Available  Phase = "available"  // declared, nothing deployed by us
	Deploying  Phase = "deploying"
	Active     Phase = "active"
	Cleaning   Phase = "cleaning"
	Failed     Phase = "failed"
)

// Step is where a deploying (or inspecting, or cleaning) machine is.
type StepName string

const (
	StepNone           StepName = ""
	StepStopping       StepName = "stopping"
	StepArming         StepName = "arming"
	StepPowering       StepName = "powering"
	StepBooting        StepName = "booting"
	StepClaiming       StepName = "claiming"
	StepInspecting     StepName = "inspecting"
	StepWriting        StepName = "writing"
	StepVerifying      StepName = "verifying"
	StepStarting       StepName = "starting"
	StepRestarting     StepName = "restarting"        // power-cycled, silent since it was to start
	StepPowerOff       StepName = "powering-off"      // the last one of a wipe
	StepAwaitingPerson StepName = "awaiting-operator" // no BMC, or an erase to confirm
)

// Sync, Health and Evidence are three answers that are never merged.
type Sync string

const (
	InSync      Sync = "in sync"
	OutOfSync   Sync = "out of sync"
	SyncUnknown Sync = "unknown"
)

type Health string

const (
	Healthy       Health = "healthy"
	Progressing   Health = "progressing"
	Degraded      Health = "degraded"
	Missing       Health = "missing"
	Suspended     Health = "suspended"
	HealthUnknown Health = "unknown"
)

// Evidence says how, and since when, we know what a machine runs.
type Evidence struct {
	Level      inventory.EvidenceLevel `json:"level"`
	Generation inventory.Digest        `json:"generation,omitempty"`
	At         time.Time               `json:"at,omitzero"`
	Detail     string                  `json:"detail,omitempty"`
	// Reported is when the system last said itself that it is this generation, since At.
	Reported time.Time `json:"reported,omitzero"`
	// Quote is the digest of what the machine's TPM signed of it; "" it signed nothing.
	Quote inventory.Digest `json:"quote,omitempty"`
}

// short says what is missing where a definition wants so much; "" nothing. What is
// enforced is measured too only where a TPM signed it.
func (e Evidence) short(need inventory.EvidenceLevel) string {
	switch {
	case e.Level < need:
		return fmt.Sprintf("evidence is %q, %q is wanted", e.Level, need)
	case need == inventory.E4 && e.Level > need && e.Quote == "":
		return fmt.Sprintf("evidence is %q, but no TPM signed it, and %q is wanted", e.Level, need)
	}
	return ""
}

// Hold keeps recast's hands off a machine until released or expired.
type Hold struct {
	Owner   string    `json:"owner"`
	Reason  string    `json:"reason"`
	Cure    string    `json:"cure,omitempty"` // what to do before it is released
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires,omitzero"` // zero: until released
	// Thaws: it ends when nothing is frozen any more.
	Thaws bool `json:"thaws,omitempty"`
}

// Progress of the step that moves bytes.
type Progress struct {
	At      time.Time           `json:"at"`    // of the last report
	Doing   inventory.AgentStep `json:"doing"` // what Done counts: bytes compared, written, read back
	Since   time.Time           `json:"since"` // of the first report of that
	Moved   time.Time           `json:"-"`     // when a byte did last
	Done    int64               `json:"done"`
	Total   int64               `json:"total"`
	Rate    float64             `json:"rate"` // bytes of Done per second since Since
	Fetched int64               `json:"fetched"`
	Written int64               `json:"written"`
}

// Moved is what a write took, in bytes: over the wire, and to the disk.
type Moved struct {
	At      time.Time `json:"at"`
	Fetched int64     `json:"fetched"`
	Written int64     `json:"written"`
}

// Status is the observed side of one machine. One writer: the engine.
type Status struct {
	Machine string   `json:"machine"`
	Phase   Phase    `json:"phase"`
	Step    StepName `json:"step,omitempty"`

	// Running is the generation the last evidence stands for; Wanted the one a
	// current attempt works towards.
	Running         inventory.Digest `json:"running,omitempty"`
	RunningRendered inventory.Digest `json:"runningRendered,omitempty"`
	RunningWrite    string           `json:"runningWrite,omitempty"` // names the write that made it
	// Ran: the machine was active with Running, and its disk was not written since.
	Ran            bool             `json:"ran,omitempty"`
	Wanted         inventory.Digest `json:"wanted,omitempty"`
	WantedRendered inventory.Digest `json:"wantedRendered,omitempty"`

	Evidence Evidence  `json:"evidence"`
	Gate     *GateSeen `json:"gate,omitempty"` // what its gate saw last; nil: it has none
	TPM      *TPM      `json:"tpm,omitempty"`  // nil: none has enrolled
	Health   Health    `json:"health"`

	Attempt  int       `json:"attempt,omitempty"` // of Wanted; counts from 1
	Since    time.Time `json:"since,omitzero"`    // of Step (or Phase)
	Deadline time.Time `json:"deadline,omitzero"` // of Step; zero: none
	// NextAction is what happens at the deadline, or what a person must do now.
	NextAction string `json:"nextAction,omitempty"`
	LastError  string `json:"lastError,omitempty"`
	// FailedImage is the damaged image an attempt failed for; the machine begins
	// again by itself when it is mended.
	FailedImage inventory.Digest `json:"failedImage,omitempty"`
	// LastSeen is the last thing seen from the machine, in words, and when.
	LastSeen   string    `json:"lastSeen,omitempty"`
	LastSeenAt time.Time `json:"lastSeenAt,omitzero"`

	Hold     *Hold    `json:"hold,omitempty"`
	Findings []string `json:"findings,omitempty"`

	Disk *inventory.DiskID `json:"disk,omitempty"` // the disk last written
	// Unfinished: Disk was erased and not written to its end, so that it cannot
	// say by itself that it is ours.
	Unfinished bool `json:"unfinished,omitempty"`
	// DiskImage is the image of which Disk, or the disk that may be written now, holds
	// blocks; "" unknown.
	DiskImage inventory.Digest `json:"diskImage,omitempty"`
	// Moved is what the last finished write took.
	Moved    *Moved           `json:"moved,omitempty"`
	Facts    *inventory.Facts `json:"facts,omitempty"`
	FactsAt  time.Time        `json:"factsAt,omitzero"`
	Progress *Progress        `json:"progress,omitempty"` // kept in memory only
	BootID   string           `json:"bootID,omitempty"`   // of the operating system's last report
	// BootOrder of the firmware, in hex, as the agent left it with the present disk.
	BootOrder string `json:"bootOrder,omitempty"`
	Power     string `json:"power,omitempty"`    // as last seen: on, off, unknown
	Board     *Board `json:"board,omitempty"`    // that its BMC showed first, since the last write
	Restarts  int    `json:"restarts,omitempty"` // of the ramdisk within this attempt
	// OffSince is when the watch first saw it off that nobody had told recast to
	// switch off; zero: it is not.
	OffSince time.Time `json:"offSince,omitzero"`
	// SwitchedOn is when recast switched it on for that, in the last day.
	SwitchedOn []time.Time `json:"switchedOn,omitempty"`
	// Identity that the last claim had: L0 or L1.
	Identity inventory.Identity `json:"identity,omitempty"`
	Offers   *BMCOffers         `json:"offers,omitempty"` // the ways to boot that its BMC showed
}

// EntryKind is what a Plan would do with one machine.
type EntryKind string

const (
	EntryObserve EntryKind = "observe" // wait for evidence; touches nothing
	EntryAdopt   EntryKind = "adopt"
	EntryInspect EntryKind = "inspect" // netboot, look, write only if the disk is blank
	EntryWrite   EntryKind = "write"
	EntryRestart EntryKind = "restart"
)

// Entry is one line of a Plan.
type Entry struct {
	Machine      string           `json:"machine"`
	Group        string           `json:"group"`
	Kind         EntryKind        `json:"kind"`
	Why          string           `json:"why"`
	From         inventory.Digest `json:"from,omitempty"`
	To           inventory.Digest `json:"to,omitempty"`
	FromRendered inventory.Digest `json:"fromRendered,omitempty"`
	ToRendered   inventory.Digest `json:"toRendered,omitempty"`
	// Disk in words: by serial where the inventory is known, else the hints.
	Disk string `json:"disk,omitempty"`
	// DiskSize in bytes, where the inventory is known.
	DiskSize int64  `json:"diskSize,omitempty"`
	Holds    string `json:"holds,omitempty"` // what is on it, as last seen
	// disk is the one in question, where the inventory is known.
	disk *inventory.DiskID
	// NeedsErase: it will not be written unless named with --erase.
	NeedsErase bool `json:"needsErase,omitempty"`
	// FetchBytes and WriteBytes are what its disk takes, if it holds what it is
	// believed to hold; ImageBytes is the whole image, packed.
	FetchBytes int64 `json:"fetchBytes,omitempty"`
	WriteBytes int64 `json:"writeBytes,omitempty"`
	ImageBytes int64 `json:"imageBytes,omitempty"`
	// FromImage is the image that the disk holds, "" unknown; Whole says why all of
	// the image is fetched nevertheless, "" only what FromImage lacks.
	FromImage   inventory.Digest `json:"fromImage,omitempty"`
	Whole       string           `json:"whole,omitempty"`
	toImage     inventory.Digest
	look        bool // blocks of toImage may stand on the disk
	PowerCycles int  `json:"powerCycles,omitempty"`
	// Blocked says why apply leaves it out; "" it does not.
	Blocked string `json:"blocked,omitempty"`
	left    Wait   // Blocked in its parts
	// Waits says why it would not start at once; "" it would, in its wave.
	Waits string `json:"waits,omitempty"`
}

// Plan is what would make every Status match the Set, and nothing else. Its
// digest covers the candidate, the applied Set it was compared with, the
// entries and the machines named for erasing.
type Plan struct {
	Digest    inventory.Digest `json:"digest"`
	Candidate inventory.Digest `json:"candidate"` // of the Set to apply
	Applied   inventory.Digest `json:"applied"`   // of the Set in force
	// Changes to declared objects in words, one a line: "definition compute changed".
	Changes []string  `json:"changes,omitempty"`
	Entries []Entry   `json:"entries"`
	Erase   []string  `json:"erase,omitempty"`
	Created time.Time `json:"created"` // not part of the digest
}

// Empty is the definition of done.
func (p Plan) Empty() bool { return len(p.Entries) == 0 && len(p.Changes) == 0 }

// View is one machine as an operator sees it: declared, observed, compared.
type View struct {
	Name    string             `json:"name"`
	Machine *inventory.Machine `json:"machine,omitempty"` // nil: not declared
	Group   string             `json:"group,omitempty"`
	Image   string             `json:"image,omitempty"`
	// Wanted by the applied Set, which may be ahead of Status.Wanted.
	Wanted         inventory.Digest `json:"wanted,omitempty"`
	WantedRendered inventory.Digest `json:"wantedRendered,omitempty"`
	Sync           Sync             `json:"sync"`
	SyncWhy        string           `json:"syncWhy,omitempty"`
	Status         Status           `json:"status"`
	// Waiting is the first failing reason of the admission check; "" it moves or
	// has nothing to do.
	Waiting string   `json:"waiting,omitempty"`
	BMC     *BMCView `json:"bmc,omitempty"` // nil: it declares none
	next    string   // what ends the waiting
}

// TimelineEntry is one line of a machine's history.
type TimelineEntry struct {
	Seq    int64     `json:"seq"`
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // phase, step, seen, log, bmc, operator, finding, error
	Text   string    `json:"text"`
	Detail string    `json:"detail,omitempty"`
	// Times is how often the line came, one after the other; 0 is once.
	Times int `json:"times,omitempty"`
	// Seen is what stands behind a line of kind "seen", where a server saw it.
	Seen *inventory.Observation `json:"seen,omitempty"`
	// Trace of the attempt it belongs to, as DHCP replies, boot scripts, the agent's
	// console and logs name it.
	Trace string `json:"trace,omitempty"`
}

// Cause is what may stand behind a missing step.
type Cause struct {
	Code string `json:"code"` // a word for searches and scripts: no-discover
	Text string `json:"text"`
	Next string `json:"next,omitempty"` // what to do, or the command to run
}

// Explanation names the first missing step of a machine and the cure.
type Explanation struct {
	Machine  string   `json:"machine"`
	State    string   `json:"state"`            // one line: where it is and since when
	Missing  string   `json:"missing"`          // the first missing step; "" nothing is missing
	Causes   []Cause  `json:"causes,omitempty"` // the likeliest first
	Findings []string `json:"findings,omitempty"`
	Power    string   `json:"power,omitempty"` // as the BMC said just now; "" it was not asked
	Next     string   `json:"next"`            // what happens next, or the command to run
	Trace    string   `json:"trace,omitempty"` // of the attempt under way
	// Console are the last lines kept of its serial console, where something is missing.
	Console  []string        `json:"console,omitempty"`
	Timeline []TimelineEntry `json:"timeline"`
}

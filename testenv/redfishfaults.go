package testenv

import "time"

// RedfishFaults are the ways of Redfish BMCs alone; the zero value is one that
// follows the specification (DSP0266).
type RedfishFaults struct {
	// ETag is how resources are versioned.
	ETag RedfishETag
	// ETagStatus answers a PATCH without If-Match that needs one (NeedETag); 0: 428.
	ETagStatus int
	// RefuseIfMatchPost answers 412 to an action that carries If-Match.
	RefuseIfMatchPost bool
	// Gzip compresses answers, and demands it where the value says so.
	Gzip RedfishGzip

	// Settings is where the boot override is written.
	Settings RedfishSettings
	// RefuseContinuous answers 400 to an override that stays.
	RefuseContinuous bool
	// RefusePartialBoot answers 400 unless target, enabled and mode come together.
	RefusePartialBoot bool
	// RefuseUnchangedBoot answers 400 to an Enabled that is so already.
	RefuseUnchangedBoot bool
	// NeedEnabled makes of Continuous a Once when a PATCH leaves Enabled out.
	NeedEnabled bool
	// ModeJob changes the firmware mode by a job that waits for the next start,
	// and refuses a second one until then.
	ModeJob bool

	// Resets are the reset types on offer; nil: all.
	Resets []string
	// ActionInfo tells them in a resource of its own instead of in the action.
	ActionInfo bool
	// AcceptSame answers 204 to a power command that changes nothing, instead of 409.
	AcceptSame bool
	// OnRefused answers 409 to On for so long after the machine went off.
	OnRefused time.Duration
	// POST refuses every change of the system for so long after a start.
	POST time.Duration
	// PoweringWords tells PoweringOn and PoweringOff during PowerLag.
	PoweringWords bool

	// Task answers power, boot and media changes with 202 and a task.
	Task RedfishTask
	// TaskTakes until it ends, TaskHidden until it can be found (404 before).
	TaskTakes, TaskHidden time.Duration

	// Media is how the virtual drives want to be asked.
	Media RedfishMediaFaults

	// LoginTakes is how long the check of a password lasts.
	LoginTakes time.Duration
	// Workers is how many requests are served at once, the others get 503; 0: all.
	Workers int
	// NewCertificateAtRestart makes another one each time.
	NewCertificateAtRestart bool
	// RedirectTo answers 308 to every request but the root: the same path on that
	// host:port.
	RedirectTo string
	// RedirectSlash answers 308 to a path without a slash at its end.
	RedirectSlash bool
	// Page is how many members a collection tells at once, with a link to the
	// next; 0: all.
	Page int
	// Holes are the properties left out of every resource.
	Holes []string
	// NumbersAsText writes every number as a string.
	NumbersAsText bool
}

// RedfishETag is how a BMC versions its resources.
type RedfishETag string

const (
	ETagStrong    RedfishETag = ""           // as the specification wants
	ETagWeak      RedfishETag = "weak"       // W/"…", and compared weakly
	ETagWeakFalse RedfishETag = "weak-false" // W/"…" is given out, but only "…" is accepted
	ETagEmpty     RedfishETag = "empty"      // a header without a value
	ETagNone      RedfishETag = "none"       // no header; If-Match is not looked at
)

// RedfishGzip is whether answers are compressed.
type RedfishGzip string

const (
	GzipNever  RedfishGzip = ""
	GzipOffer  RedfishGzip = "offer"  // to who accepts it; the ETag changes with it
	GzipDemand RedfishGzip = "demand" // and 406 to who asks for a registry without
)

// RedfishSettings is where the boot override is written.
type RedfishSettings string

const (
	SettingsNone   RedfishSettings = ""       // the system itself
	SettingsObject RedfishSettings = "object" // the settings object alone; it applies at the next start
	SettingsFuture RedfishSettings = "future" // AMI: the system answers OperationSupportedInFutureStateURI, and …/SD takes it
	SettingsDecoy  RedfishSettings = "decoy"  // a settings object without Boot; the system takes it
	SettingsOrder  RedfishSettings = "order"  // Lenovo: one with the boot order alone; the system takes the override
)

// RedfishTask is what becomes of the tasks.
type RedfishTask string

const (
	TaskNone  RedfishTask = ""      // changes are made before they are answered
	TaskOK    RedfishTask = "ok"    // 202, then made
	TaskFail  RedfishTask = "fail"  // 202, then an exception: nothing is made
	TaskStuck RedfishTask = "stuck" // 202, and running for ever: nothing is made
)

// RedfishMediaFaults are the ways of virtual drives.
type RedfishMediaFaults struct {
	// OnlyPatch has no actions: a PATCH of Image inserts and ejects (Lenovo SD530).
	OnlyPatch bool
	// Need are the parameters without which an insertion is refused:
	// TransferProtocolType, TransferMethod, UserName, Password.
	Need []string
	// Refuse are the parameters with which it is: Inserted, WriteProtected …
	Refuse []string
	// EjectLag shows the medium for so long after it was ejected.
	EjectLag time.Duration
	// EjectBroken answers 500 to the drive for so long after it was ejected.
	EjectBroken time.Duration
}

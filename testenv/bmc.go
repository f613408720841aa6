package testenv

import (
	"context"
	"sync"
	"time"
)

// BMCFaults are the ways in which a virtual BMC fails its caller. Change them
// at any time with SetFaults; the zero value is a BMC that keeps its word.
type BMCFaults struct {
	// IgnorePower accepts every power command and does nothing.
	IgnorePower bool
	// IgnoreBoot accepts every boot override and keeps the old one.
	IgnoreBoot bool
	// LoseBoot keeps an override until the next start, which then does not see it.
	LoseBoot bool
	// FlipMode stores the other firmware mode than the one asked for.
	FlipMode bool
	// BootExpiry ends an override that no power command follows in time, as IPMI
	// BMCs do after 60 s unless parameter 3 says otherwise; 0 never.
	BootExpiry time.Duration
	// RejectParam3 refuses that parameter (IPMI).
	RejectParam3 bool
	// RefuseAuth answers every login as if the password were wrong.
	RefuseAuth bool
	// LockAfter refuses every login after so many failed ones; 0 never.
	LockAfter int
	// Hang answers nothing.
	Hang bool
	// Busy answers 503 (Redfish) or node busy (IPMI), after the login.
	Busy bool
	// CutShort answers every question with one byte, after the login (IPMI).
	CutShort bool
	// LoseReply executes a power command and never answers it.
	LoseReply bool
	// RejectAfter executes a change and then answers that it was refused (Redfish).
	RejectAfter bool
	// NeedETag refuses a PATCH without If-Match (428, Redfish).
	NeedETag bool
	// Delay before each answer.
	Delay time.Duration
}

// BMCRequest is one thing that a virtual BMC was asked to do.
type BMCRequest struct {
	Seq int
	At  time.Time
	// Verb is login, logout, power-on, power-off, shutdown, reset, cycle,
	// set-boot, or read for everything that changes nothing.
	Verb string
	// Detail is the path, the command's name, the override or the user.
	Detail string
	// Done says that the machine was really told to.
	Done bool
}

// bmcFront is what both kinds of virtual BMC share: the machine behind them,
// the faults, the log.
type bmcFront struct {
	machine Machine

	mu     sync.Mutex
	faults BMCFaults
	log    []BMCRequest
	failed int // logins since the last good one
	set    time.Time
	keep   bool // the override does not expire
	closed chan struct{}
}

// SetFaults changes the faults under lock.
func (f *bmcFront) SetFaults(change func(*BMCFaults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.faults)
}

// Requests is everything so far, in order.
func (f *bmcFront) Requests() []BMCRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]BMCRequest(nil), f.log...)
}

// Count is how many requests had that verb, done or not.
func (f *bmcFront) Count(verb string) int {
	n := 0
	for _, r := range f.Requests() {
		if r.Verb == verb {
			n++
		}
	}
	return n
}

// Done is how many requests with that verb reached the machine.
func (f *bmcFront) Done(verb string) int {
	n := 0
	for _, r := range f.Requests() {
		if r.Verb == verb && r.Done {
			n++
		}
	}
	return n
}

// Forget empties the log.
func (f *bmcFront) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

func (f *bmcFront) now() BMCFaults {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults
}

func (f *bmcFront) record(verb, detail string, done bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, BMCRequest{Seq: len(f.log) + 1, At: time.Now(), Verb: verb, Detail: detail, Done: done})
}

// login records an attempt and says whether it may succeed at all.
func (f *bmcFront) login(user string) bool {
	f.record("login", user, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	allowed := !f.faults.RefuseAuth && (f.faults.LockAfter == 0 || f.failed < f.faults.LockAfter)
	f.failed++
	return allowed
}

// loggedIn ends a row of failed logins.
func (f *bmcFront) loggedIn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = 0
}

// wait is the Delay; false when the BMC is being closed.
func (f *bmcFront) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.closed:
		return false
	}
}

// power tells the machine. The override is judged here, because only a power
// command within its time saves it.
func (f *bmcFront) power(ctx context.Context, verb string, do func(context.Context) error) error {
	faults := f.now()
	if faults.IgnorePower {
		f.record(verb, "", false)
		return nil
	}
	f.expire()
	if faults.LoseBoot {
		if err := f.machine.SetBootOnce(BootOnce{}); err != nil {
			return err
		}
	}
	f.record(verb, "", true)
	return do(ctx)
}

// expire clears an override whose time is over.
func (f *bmcFront) expire() {
	f.mu.Lock()
	over := f.faults.BootExpiry > 0 && !f.keep && !f.set.IsZero() && time.Since(f.set) > f.faults.BootExpiry
	if over {
		f.set = time.Time{}
	}
	f.mu.Unlock()
	if over {
		_ = f.machine.SetBootOnce(BootOnce{})
	}
}

func (f *bmcFront) boot() BootOnce {
	f.expire()
	return f.machine.BootOnce()
}

func (f *bmcFront) setBoot(once BootOnce) error {
	faults := f.now()
	f.record("set-boot", once.String(), !faults.IgnoreBoot)
	if faults.IgnoreBoot {
		return nil
	}
	if faults.FlipMode && once.Device != BootNone {
		once.UEFI = !once.UEFI
	}
	f.mu.Lock()
	f.set = time.Now()
	f.mu.Unlock()
	return f.machine.SetBootOnce(once)
}

// String is "pxe uefi", "disk bios" or "none".
func (o BootOnce) String() string {
	switch {
	case o.Device == BootNone:
		return "none"
	case o.UEFI:
		return string(o.Device) + " uefi"
	}
	return string(o.Device) + " bios"
}

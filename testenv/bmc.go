package testenv

import (
	"context"
	"sync"
	"time"
)

// MachineBMC is the virtual BMC of a machine: one of these, or neither.
type MachineBMC struct {
	IPMI    *IPMIBMC
	Redfish *RedfishBMC
}

// virtualBMC is what both can do.
type virtualBMC interface {
	SetFaults(func(*BMCFaults))
	Requests() []BMCRequest
	Count(verb string) int
	Restart()
	SetBoard(Board) error
	Close() error
}

// Board is what tells one board from another: SMBIOS says it, and the BMC.
type Board struct{ UUID, Serial string }

// other is a board of the same kind.
func (b Board) other() Board {
	o := Board{b.UUID, "SWAPPED-" + b.Serial}
	if b.UUID != "" {
		o.UUID = simEither(b.UUID[0] == '0', "1", "0") + b.UUID[1:]
	}
	return o
}

// either of them; nil for neither.
func (m MachineBMC) either() virtualBMC {
	switch {
	case m.IPMI != nil:
		return m.IPMI
	case m.Redfish != nil:
		return m.Redfish
	}
	return nil
}

// SetFaults changes how it fails.
func (m MachineBMC) SetFaults(change func(*BMCFaults)) {
	if b := m.either(); b != nil {
		b.SetFaults(change)
	}
}

func (m MachineBMC) closeBMC() error {
	if b := m.either(); b != nil {
		return b.Close()
	}
	return nil
}

// BMCFaults are the ways in which a virtual BMC fails its caller. Change them
// at any time with SetFaults; the zero value is a BMC that keeps its word.
type BMCFaults struct {
	// IgnorePower accepts every power command and does nothing.
	IgnorePower bool
	// IgnoreShutdown accepts the soft shutdown alone and does nothing.
	IgnoreShutdown bool
	// PowerLag tells the old power state for so long after each change.
	PowerLag time.Duration
	// StaleReads tells it so often after each change.
	StaleReads int
	// IgnoreBoot accepts every boot override and keeps the old one.
	IgnoreBoot bool
	// LoseBoot keeps an override until the next start, which then does not see it.
	LoseBoot bool
	// KeepBoot arms a "once" again after each start, as a "continuous" is.
	KeepBoot bool
	// FlipMode stores the other firmware mode than the one asked for.
	FlipMode bool
	// IgnoreEFI stores every override as one for BIOS.
	IgnoreEFI bool
	// RevertBoot keeps an override for one look at it, and has none from then on.
	RevertBoot bool
	// BootExpiry ends an override that no power command follows in time, unless
	// parameter 3 says otherwise; 0 is 60 s on IPMI and never on Redfish.
	BootExpiry time.Duration
	// CycleWhenOff is what becomes of a power cycle then (IPMI).
	CycleWhenOff CycleWhenOff
	// RejectParam3 refuses that parameter (IPMI).
	RejectParam3 bool
	// RefuseAuth answers every login as if the password were wrong.
	RefuseAuth bool
	// LockAfter refuses every login after so many failed ones, for LockFor or,
	// where that is 0, until the BMC restarts; 0 never.
	LockAfter int
	LockFor   time.Duration
	// Hang answers nothing.
	Hang bool
	// Busy answers 503 (Redfish) or node busy (IPMI), after the login.
	Busy bool
	// CutShort answers every question with one byte, after the login (IPMI).
	CutShort bool
	// LoseReply executes a power command and never answers it.
	LoseReply bool
	// LoseEveryReply does so with all that changes something (Redfish: a system, or
	// a drive of it).
	LoseEveryReply bool
	// LoseIn and LoseOut are the probabilities with which a packet to the BMC and
	// one from it is lost (IPMI).
	LoseIn, LoseOut float64
	// Away is how long a restart of the BMC takes (0: half a second on IPMI), and
	// ForgetBoot makes it drop the override.
	Away       time.Duration
	ForgetBoot bool
	// IgnoreRestart accepts a restart of the BMC and goes on.
	IgnoreRestart bool
	// CipherZero offers suite 0, Anonymous lets the user without name and password in as
	// administrator, and OldProtocol lets IPMI 1.5 in (IPMI): findings for who looks.
	CipherZero, Anonymous, OldProtocol bool
	// RejectAfter executes a change and then answers that it was refused (Redfish).
	RejectAfter bool
	// NeedETag refuses a PATCH without If-Match (428, Redfish).
	NeedETag bool
	// Delay before each answer.
	Delay time.Duration
	// Redfish are those of that protocol alone.
	Redfish RedfishFaults
}

// BMCRequest is one thing that a virtual BMC was asked to do.
type BMCRequest struct {
	Seq int // from 1, in the order of arrival; Forget does not start it anew
	At  time.Time
	// Verb is login, logout, power-on, power-off, shutdown, reset, cycle,
	// set-boot, nmi, insert, eject, set-account, set-certificate, set-service,
	// subscribe, add-log, clear-log, set-clock, identify, console, restart-bmc, or
	// read for everything that changes nothing.
	Verb string
	// Detail is the path, the command's name, the override or the user.
	Detail string
	// Done says that it was executed.
	Done bool
}

// bmcFront is what both kinds of virtual BMC share: the faults, the log, the
// machine behind them.
type bmcFront struct {
	bmcSystem

	mu     sync.Mutex
	faults BMCFaults
	log    []BMCRequest
	seq    int
	on     func(verb string, executed bool)
	failed int       // logins since the last good one
	locked time.Time // since when there were too many
	closed chan struct{}
}

// bmcSystem is one machine as its BMC tells of it. Its fields are guarded by
// the lock of the front.
type bmcSystem struct {
	front   *bmcFront
	name    string // in the log; "" where the BMC has only one
	machine Machine

	expiry  time.Duration // of an override, where the faults do not say
	set     time.Time
	keep    bool     // the override does not expire
	looks   int      // at the override, since it was set
	again   BootOnce // armed again after each start
	always  bool     // because it is "continuous"
	was     bool     // powered, before the last change
	stale   int      // how often that is still told
	changed time.Time
	started time.Time
}

func newBMCFront(machine Machine, faults BMCFaults) *bmcFront {
	f := &bmcFront{faults: faults, closed: make(chan struct{})}
	f.bmcSystem.attach(f, "", machine)
	return f
}

// attach puts the machine behind the BMC and listens to what it does by itself.
func (s *bmcSystem) attach(front *bmcFront, name string, machine Machine) {
	s.front, s.name, s.machine = front, name, machine
	if w, ok := machine.(Watched); ok {
		w.Watch(s.noted)
	}
}

// noted is a change of the machine's power, whoever made it.
func (s *bmcSystem) noted(c MachineChange) {
	s.front.mu.Lock()
	now := time.Now()
	switch c {
	case MachineOn:
		s.was, s.changed, s.started, s.stale = false, now, now, s.front.faults.StaleReads
	case MachineReset:
		s.started = now
	case MachineOff:
		s.was, s.changed, s.stale = true, now, s.front.faults.StaleReads
	}
	again := s.again
	s.front.mu.Unlock()
	if c != MachineOff && again.Device != BootNone {
		_ = s.machine.SetBootOnce(again)
	}
}

// powered is what the BMC tells: after a change, for a time, the state before it.
func (s *bmcSystem) powered() bool {
	now := s.machine.Powered()
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	if lag := s.front.faults.PowerLag; lag > 0 && !s.changed.IsZero() && time.Since(s.changed) < lag {
		return s.was
	}
	if s.stale > 0 {
		s.stale--
		return s.was
	}
	return now
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
	f.seq++
	f.log = append(f.log, BMCRequest{Seq: f.seq, At: time.Now(), Verb: verb, Detail: detail, Done: done})
	f.mu.Unlock()
	f.tell(verb, false)
}

// OnRequest calls a func when a request has come, and once more when a power command
// or an override was executed and not yet answered. The request waits for it.
func (f *bmcFront) OnRequest(on func(verb string, executed bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

func (f *bmcFront) tell(verb string, executed bool) {
	f.mu.Lock()
	on := f.on
	f.mu.Unlock()
	if on != nil {
		on(verb, executed)
	}
}

// login records an attempt and says whether it may succeed at all.
func (f *bmcFront) login(user string) bool {
	f.record("login", user, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	lock := f.faults.LockAfter
	if lock > 0 && f.failed >= lock && f.faults.LockFor > 0 && time.Since(f.locked) >= f.faults.LockFor {
		f.failed = 0
	}
	allowed := !f.faults.RefuseAuth && (lock == 0 || f.failed < lock)
	if f.failed++; f.failed == lock {
		f.locked = time.Now()
	}
	return allowed
}

// loggedIn ends a row of failed logins.
func (f *bmcFront) loggedIn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = 0
}

// forget is what a restart of the BMC does to the lock.
func (f *bmcFront) forget() {
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
func (s *bmcSystem) power(ctx context.Context, verb string, do func(context.Context) error) error {
	faults := s.front.now()
	if faults.IgnorePower || faults.IgnoreShutdown && verb == "shutdown" {
		s.front.record(verb, s.name, false)
		return nil
	}
	s.expire()
	if faults.LoseBoot {
		if err := s.machine.SetBootOnce(BootOnce{}); err != nil {
			return err
		}
	}
	s.front.record(verb, s.name, true)
	s.front.mu.Lock()
	if !s.set.IsZero() {
		s.set = time.Now() // each power command begins the time anew (IPMI 2.0, 28.14)
	}
	s.front.mu.Unlock()
	defer s.front.tell(verb, true)
	return do(ctx)
}

// expire clears an override whose time is over.
func (s *bmcSystem) expire() {
	s.front.mu.Lock()
	expiry := s.front.faults.BootExpiry
	if expiry == 0 {
		expiry = s.expiry
	}
	over := expiry > 0 && !s.keep && !s.set.IsZero() && time.Since(s.set) > expiry ||
		s.front.faults.RevertBoot && s.looks > 0
	s.front.mu.Unlock()
	if over {
		s.clearBoot()
	}
}

func (s *bmcSystem) clearBoot() {
	s.front.mu.Lock()
	s.set, s.again, s.always = time.Time{}, BootOnce{}, false
	s.front.mu.Unlock()
	_ = s.machine.SetBootOnce(BootOnce{})
}

// keepBoot decides whether an override expires.
func (s *bmcSystem) keepBoot(keep bool) {
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	s.keep = keep
}

func (s *bmcSystem) boot() BootOnce {
	once, _ := s.bootFor()
	return once
}

// bootFor is the override, and whether it is one for all starts that come.
func (s *bmcSystem) bootFor() (once BootOnce, continuous bool) {
	s.expire()
	s.front.mu.Lock()
	s.looks++
	continuous = s.always
	s.front.mu.Unlock()
	return s.machine.BootOnce(), continuous
}

// setBootFor sets the override for one start or for all that come.
func (s *bmcSystem) setBootFor(once BootOnce, continuous bool) error {
	faults := s.front.now()
	detail := once.String()
	if continuous {
		detail += " always"
	}
	if s.name != "" {
		detail = s.name + ": " + detail
	}
	s.front.record("set-boot", detail, !faults.IgnoreBoot)
	if faults.IgnoreBoot {
		return nil
	}
	if once.Device != BootNone {
		once.UEFI = once.UEFI != faults.FlipMode && !faults.IgnoreEFI
	}
	s.front.mu.Lock()
	s.set, s.looks, s.again, s.always = time.Now(), 0, BootOnce{}, continuous
	if continuous || faults.KeepBoot {
		s.again = once
	}
	s.front.mu.Unlock()
	defer s.front.tell("set-boot", true)
	return s.machine.SetBootOnce(once)
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

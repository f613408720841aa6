package provision

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// Gate is the part of an intent that stands: from the write on, every boot of the
// machine is proved first, and blocks of Regions that differ may be written to Disk
// where OnMismatch says so. It ends with the next write of the disk.
type Gate struct {
	inventory.Gate
	Regions []inventory.Region `json:"regions"`
	// Verity are the partitions that are proved by their trees, which are among Regions.
	Verity []VerityRoot `json:"verity,omitempty"`
	// Kernel is what it starts by kexec; nil: it hands over by a restart.
	Kernel *inventory.JobKernel `json:"kernel,omitempty"`

	// What it is about: this disk, with what this write of this store put there. In
	// another epoch boots are proved still, and nothing is written.
	Disk       inventory.DiskID `json:"disk"`
	Generation inventory.Digest `json:"generation"`
	Rendered   inventory.Digest `json:"rendered"`
	Write      string           `json:"write"`
	Epoch      string           `json:"epoch"`
	Since      time.Time        `json:"since"`

	// Boots counts the claims granted; Claim is that of the boot under way, or of the
	// last. Jobs counts what it was given to do.
	Boots int         `json:"boots"`
	Claim *ClaimState `json:"claim,omitempty"`
	Jobs  int         `json:"jobs,omitempty"`
	// Failures in a row to prove or repair anything.
	Failures int `json:"failures,omitempty"`
	// Circles counts the times in a row that it was told to start its disk, and came back.
	Circles int `json:"circles,omitempty"`
	// Consent lets it be repaired once, whatever its standing intent says; nil: none.
	Consent *GateConsent `json:"consent,omitempty"`
	// Anew: an operator wants its disk written anew. What differs still waits in the ramdisk
	// for that, without a hold, which would keep it from its turn.
	Anew bool `json:"anew,omitempty"`
	// Pass lets the machine start its disk; nil: it goes through the gate.
	Pass *Pass `json:"pass,omitempty"`
	// Passed: it was let through, and its system has not reported itself since.
	Passed bool `json:"passed,omitempty"`
	// Jumped is when that was done by kexec; zero: by a restart.
	Jumped time.Time `json:"jumped,omitzero"`
	// Lost counts the starts by kexec in a row that came to nothing. NoKexec is why it
	// hands over by a restart, although it has a Kernel, until the disk is written anew or
	// it is released.
	Lost    int    `json:"lost,omitempty"`
	NoKexec string `json:"noKexec,omitempty"`
}

// GateConsent is an operator's word that what differs may be written, however much, until
// the disk is proved or held again. In another epoch it is void.
type GateConsent struct {
	By    string `json:"by"`
	Epoch string `json:"epoch"`
}

// writesAll tells that a repair writes whatever differs, which nobody counts before.
func (g *Gate) writesAll() bool { return g.OnMismatch == inventory.MismatchRestore || g.Consent != nil }

// Pass is permission to start the disk once, for a machine whose firmware asks the
// network first.
type Pass struct {
	Until time.Time `json:"until"`
	// Asked is when it was told to start its disk; it may ask again for a moment, since
	// firmware does. Zero: not yet.
	Asked time.Time `json:"asked,omitzero"`
}

const (
	// PassTime is how long a pass waits for the machine to restart; PassTimeSlow for one
	// that took longer than that last time.
	PassTime     = 5 * time.Minute
	PassTimeSlow = 30 * time.Minute
	// passUse is how long one start may go on asking: by several cards, in turn.
	passUse = time.Minute
)

func (p *Pass) valid(now time.Time) bool {
	return p != nil && now.Before(p.Until) && (p.Asked.IsZero() || now.Before(p.Asked.Add(passUse)))
}

// GateStep is where a boot through the gate is.
type GateStep string

const (
	GateIdle       GateStep = ""
	GateInspecting GateStep = "inspecting"
	GateProving    GateStep = "proving"
	GateRepairing  GateStep = "repairing"
	GateLoading    GateStep = "loading" // its system's kernel, to start it by kexec
	GatePassed     GateStep = "passed"
	GateAgain      GateStep = "again"   // it could not be proved; it starts anew
	GateStopped    GateStep = "stopped" // in the ramdisk, until it is released
	GateOff        GateStep = "off"     // stopped, and switched off
)

// GateVerdict on a boot.
type GateVerdict string

const (
	GateMatches    GateVerdict = "matches"
	GateRepaired   GateVerdict = "repaired" // it matches, after blocks were written
	GateRestored   GateVerdict = "restored" // likewise, as every boot does
	GateDiffers    GateVerdict = "differs"
	GateUnverified GateVerdict = "unverified" // it started without its gate
)

// GateSeen is what the gate saw of a machine's last boot.
type GateSeen struct {
	Step    GateStep    `json:"step,omitempty"`
	Boot    int         `json:"boot"`
	Verdict GateVerdict `json:"verdict,omitempty"`
	At      time.Time   `json:"at,omitzero"`
	Detail  string      `json:"detail,omitempty"`
	// Deadline of Step, past which it is told that nothing came of it; zero: none.
	Deadline time.Time                 `json:"deadline,omitzero"`
	Regions  []inventory.RegionVerdict `json:"regions,omitempty"` // as read
	// Unguarded is why its firmware would have started the disk without this boot, where
	// the gate is to see to it that it does not; "" it would not.
	Unguarded string `json:"unguarded,omitempty"`
	// Repairs of the last day, a hundred at most, the newest last.
	Repairs []GateRepair `json:"repairs,omitempty"`
}

// GateRepair is one use of the standing intent.
type GateRepair struct {
	At     time.Time `json:"at"`
	Blocks int64     `json:"blocks"` // of 4 KiB
}

// repairedSince counts the repairs after a moment.
func (g *GateSeen) repairedSince(t time.Time) (n int) {
	if g == nil {
		return 0
	}
	for _, r := range g.Repairs {
		if r.At.After(t) {
			n++
		}
	}
	return n
}

// working tells that the ramdisk has a job.
func (s GateStep) working() bool {
	return s == GateProving || s == GateRepairing || s == GateLoading
}

// gated is the gate that a machine's next boot goes through, nil none: while it is
// being written, wiped or looked at, that comes first.
func gated(s State) *Gate {
	if s.Intent == nil || s.Intent.Gate == nil || Busy(s.Status.Phase) && !written(s.Status.Step) {
		return nil
	}
	return s.Intent.Gate
}

// restores tells whether every boot of the machine puts back what its system wrote.
func restores(s State) bool {
	g := gated(s)
	return g != nil && g.OnMismatch == inventory.MismatchRestore
}

// stopped tells whether the machine's gate holds it: it waits in the ramdisk.
func stopped(s State) bool {
	g := s.Status.Gate
	return g != nil && (g.Step == GateStopped || g.Step == GateOff)
}

// bootGate sends a machine through its gate, unless it was just there.
func bootGate(q bootQuestion, g *Gate) ipxe.Spec {
	if !stopped(q.State) && g.Pass.valid(q.Now) {
		return bootLocal(q, "its gate has let it pass")
	}
	return ramdisk(q, q.Machine.Name, nonceArg+q.Key.GateNonce(q.Epoch, q.Machine.Name, g, g.Boots), fmt.Sprintf("gate, boot %d", g.Boots+1))
}

// GateNonce of the claim after boots granted ones; see Nonce.
func (k Key) GateNonce(epoch, machine string, g *Gate, boots int) string {
	return k.sum("gate claim", epoch, machine, g.Write, strconv.Itoa(boots))
}

// GateToken is the bearer token of the boot that claimed for the gate.
func (k Key) GateToken(epoch, machine string, g *Gate) string {
	return machine + "." + k.sum("gate", epoch, machine, g.Write, strconv.Itoa(g.Boots), g.Claim.BootID)
}

// decideGateClaim is decideClaim for a boot through the gate. A machine that its gate
// holds may come: it waits in the ramdisk.
func decideGateClaim(q claimQuestion, g *Gate, epoch string) ClaimDecision {
	name := q.Machine.Name
	refuse := func(format string, args ...any) ClaimDecision {
		return ClaimDecision{Verdict: ClaimRefuse, Reason: fmt.Sprintf(format, args...)}
	}
	if h := q.State.Status.Hold; h != nil && h.Owner == "recast" && !stopped(q.State) {
		return refuse("%s is held: %s", name, h.Reason)
	}
	if g.Claim != nil && g.Boots > 0 && sameToken(q.Claim.Nonce, q.Key.GateNonce(epoch, name, g, g.Boots-1)) {
		if g.Claim.BootID == q.Claim.BootID && g.Claim.Addr == q.Remote {
			return ClaimDecision{Verdict: ClaimRepeat, Claim: *g.Claim}
		}
		return ClaimDecision{Verdict: ClaimReplay, Reason: fmt.Sprintf("the claim nonce of %s was used already, by the boot before this one", name)}
	}
	if !sameToken(q.Claim.Nonce, q.Key.GateNonce(epoch, name, g, g.Boots)) {
		return refuse("the claim nonce is not that of the next gate boot of %s", name)
	}
	if d, ok := wrongMachine(q); !ok {
		return d
	}
	return ClaimDecision{Verdict: ClaimGrant, Claim: ClaimState{BootID: q.Claim.BootID, UUID: q.Claim.UUID, Serial: q.Claim.Serial,
		Addr: q.Remote, MAC: q.Claim.MAC, Identity: inventory.L0, Until: q.Now.Add(LeaseTime)}}
}

// foreignDisk says why the disk that a gate is about is not there, or does not hold
// what that write put on it; "" it does. Only such a disk is ever written by a gate.
func foreignDisk(g *Gate, machine string, facts inventory.Facts) (why, cure string) {
	swapped := fmt.Sprintf("put back the disk that was written, or write this one: recast retry %s, then recast plan PATH, and apply that with --erase %[1]s where it asks for it", machine)
	var found []inventory.DiskFacts
	var names []string
	for _, d := range facts.Disks {
		if g.Disk.Matches(d) == nil {
			found = append(found, d)
		} else if id, err := d.ID(); err == nil {
			names = append(names, diskName(id))
		}
	}
	switch {
	case len(found) == 0 && len(names) == 0:
		return fmt.Sprintf("%s, which was written, is not there, and no other is", diskName(g.Disk)), swapped
	case len(found) == 0:
		return fmt.Sprintf("%s, which was written, is not there: there is %s", diskName(g.Disk), strings.Join(names, ", ")), swapped
	case len(found) > 1:
		return fmt.Sprintf("there are %d disks that are %s", len(found), diskName(g.Disk)), "leave in the one that was written"
	}
	d, m := found[0], found[0].Recast
	switch {
	case m == nil:
		return fmt.Sprintf("%s does not say any more what was written to it: it is %s", diskName(g.Disk), orBlank(d.Holds)), swapped
	case m.Machine != machine || m.Write != g.Write || m.Generation != g.Generation || m.Rendered != g.Rendered:
		return fmt.Sprintf("%s says that it is generation %s of %s by write %s, and not generation %s of %s by write %s", diskName(g.Disk),
			m.Generation.Short(), m.Machine, m.Write, g.Generation.Short(), machine, g.Write), swapped
	}
	return "", ""
}

// describeVerdict says in words what differs.
func describeVerdict(v inventory.Verdict) string {
	var parts []string
	if v.Table != "" {
		parts = append(parts, "the partition table: "+v.Table)
	}
	if v.Suspended {
		parts = append(parts, "a repair that did not end, so that it does not boot")
	}
	for _, r := range v.Regions {
		if r.Blocks > 0 {
			least := ""
			if r.Want == "" {
				least = " at least"
			}
			parts = append(parts, fmt.Sprintf("%s%s %d of its blocks, the first at byte %d", r.Name, least, r.Blocks, r.First))
		} else if r.Read != r.Want {
			parts = append(parts, r.Name)
		}
	}
	return strings.Join(parts, "; ")
}

// readText names what was read, by digest.
func readText(v inventory.Verdict) string {
	var parts []string
	for _, r := range v.Regions {
		parts = append(parts, r.Name+" "+r.Read.Short())
	}
	return strings.Join(parts, ", ")
}

// budgetQuestion is what decides whether a gate may write now.
type budgetQuestion struct {
	Group    string // "" none wants the machine
	Members  int
	Repaired int  // other machines of the group in the last hour
	Restores bool // its every boot writes: none is one too many
	Said     bool // an operator lets it be repaired
	Failures inventory.IntOrPercent
	Frozen   string
	Machine  *inventory.Machine // nil: not declared any more
}

// repairBudget says why no repair may begin now, "" it may: mass drift is probably
// our own fault, and not the machines'.
func repairBudget(q budgetQuestion) (why, cure string) {
	switch limit := q.Failures.Of(q.Members); {
	case q.Machine == nil:
		return "it is not declared any more", "declare it and apply"
	case q.Machine.Protected:
		return "the machine is protected", protectedNext
	case q.Frozen != "":
		return "everything is frozen: " + q.Frozen, unfreezeNext
	case q.Said:
	case q.Group == "":
		return "no group selects it", "let a Group select it and apply"
	case q.Repaired+1 > limit && !q.Restores:
		return fmt.Sprintf("%d other machines of group %s were repaired within the hour, and its maxFailures is %d: so many at once are hardly their disks' fault", q.Repaired, q.Group, limit),
			fmt.Sprintf("find out what wrote to them; after the hour, or with more maxFailures in group %s, a release lets it be repaired", q.Group)
	}
	return "", ""
}

// unfreezeNext ends what everything waits for; a gate that waits for it goes on by itself.
const unfreezeNext = "recast unfreeze"

package provision

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"recast/inventory"
)

// ClaimVerdict is the answer to a claim.
type ClaimVerdict string

const (
	ClaimGrant  ClaimVerdict = "grant"
	ClaimRepeat ClaimVerdict = "repeat" // the same boot asks again: the reply was lost
	ClaimRefuse ClaimVerdict = "refuse"
	// ClaimReplay: refuse, and a finding: somebody else has read the boot script.
	ClaimReplay ClaimVerdict = "replay"
	ClaimHold   ClaimVerdict = "hold" // it does not fit: refuse, and hold the machine
)

// ClaimDecision is decideClaim's answer.
type ClaimDecision struct {
	Verdict ClaimVerdict
	Reason  string
	Cure    string // what ends a hold
	Claim   ClaimState
	Resume  bool
	Doubt   string // why its identity is less than it could be
}

// claimQuestion is what decideClaim needs.
type claimQuestion struct {
	Key     Key
	Machine *inventory.Machine
	State   State
	Claim   inventory.Claim
	Remote  netip.Addr
	// Lease is the machine whose lease Remote is; "" none. Checked only where
	// recast gives the addresses.
	Lease         string
	Authoritative bool
	// Twin is another machine with the same UUID, "" none; TwinDeclares: it is
	// declared with it.
	Twin         string
	TwinDeclares bool
	Minimum      inventory.Identity // that its definition wants
	Now          time.Time
}

// decideClaim follows the ladder of the re-image transaction: the nonce is the
// key to configuration and secrets, once.
func decideClaim(q claimQuestion) ClaimDecision {
	in := q.State.Intent
	refuse := func(format string, args ...any) ClaimDecision {
		return ClaimDecision{Verdict: ClaimRefuse, Reason: fmt.Sprintf(format, args...)}
	}
	hold := func(cure, format string, args ...any) ClaimDecision {
		return ClaimDecision{Verdict: ClaimHold, Reason: fmt.Sprintf(format, args...), Cure: cure}
	}
	if in == nil || !in.Live {
		return refuse("nothing is armed for %s", q.Machine.Name)
	}
	if q.State.Status.Hold != nil {
		return refuse("%s is held: %s", q.Machine.Name, q.State.Status.Hold.Reason)
	}
	if !mayBoot(q.State.Status.Step) {
		return refuse("%s is %s: no boot is armed", q.Machine.Name, q.State.Status.Step)
	}
	if in.Claim != nil && in.Boots > 0 && sameToken(q.Claim.Nonce, q.Key.Nonce(in, in.Boots-1)) {
		if in.Claim.BootID == q.Claim.BootID && in.Claim.Addr == q.Remote {
			return ClaimDecision{Verdict: ClaimRepeat, Claim: *in.Claim}
		}
		return ClaimDecision{Verdict: ClaimReplay, Reason: fmt.Sprintf("the claim nonce of %s was used already, by the boot before this one", q.Machine.Name)}
	}
	if !sameToken(q.Claim.Nonce, q.Key.Nonce(in, in.Boots)) {
		return refuse("the claim nonce is not the armed one of %s", q.Machine.Name)
	}
	if in.Via == inventory.BootMedia && len(q.Machine.NICs) > 0 && q.Remote != q.Machine.NICs[0].IP {
		return refuse("the claim for %s comes from %s, and its medium says %s", q.Machine.Name, q.Remote, q.Machine.NICs[0].IP)
	}
	if d, ok := wrongMachine(q); !ok {
		return d
	}
	identity, doubt := identityOf(in, q.Claim.UUID, q.Claim.Serial)
	if q.Minimum == inventory.L1 && identity != inventory.L1 {
		return hold("correct that, or take identity: {minimum: L1} out of its definition, and apply", "%s claims with identity %s, and its definition wants L1: %s", q.Machine.Name, identity, cmp.Or(doubt, "it booted from the network"))
	}
	claim := ClaimState{Identity: identity, BootID: q.Claim.BootID, UUID: q.Claim.UUID, Serial: q.Claim.Serial,
		Addr: q.Remote, MAC: q.Claim.MAC, Until: q.Now.Add(LeaseTime)}
	if in.Claim == nil {
		return ClaimDecision{Verdict: ClaimGrant, Claim: claim, Doubt: doubt}
	}
	if in.Claim.UUID != claim.UUID || in.Claim.Serial != claim.Serial {
		return hold("find the other, which has its hardware address or its boot script", "a second machine claims %s: UUID %q serial %q, the first had %q %q",
			q.Machine.Name, claim.UUID, claim.Serial, in.Claim.UUID, in.Claim.Serial)
	}
	if q.State.Status.Restarts >= MaxRestarts {
		return refuse("%s started the ramdisk %d times in one attempt", q.Machine.Name, MaxRestarts+1)
	}
	return ClaimDecision{Verdict: ClaimGrant, Claim: claim, Resume: true, Doubt: doubt}
}

// wrongMachine says of a claim with the right nonce that it is not that of the machine
// which was meant; ok: it may be.
func wrongMachine(q claimQuestion) (d ClaimDecision, ok bool) {
	hold := func(cure, format string, args ...any) (ClaimDecision, bool) {
		return ClaimDecision{Verdict: ClaimHold, Reason: fmt.Sprintf(format, args...), Cure: cure}, false
	}
	if q.Authoritative && q.Lease != q.Machine.Name {
		return ClaimDecision{Verdict: ClaimRefuse, Reason: fmt.Sprintf("the claim for %s comes from %s, which is not its lease", q.Machine.Name, q.Remote)}, false
	}
	// One that names no board is told by no ramdisk.
	if w, says := q.Machine.Serial, q.Claim.Serial; w != "" && w != says && (says != "" || inventory.UsableSerial(w)) {
		return hold("correct its serial in its file, or its nics if they are another machine's, and apply", "%s is declared with serial %q, the machine says %q", q.Machine.Name, w, q.Claim.Serial)
	}
	if w := q.Machine.UUID; w != "" && !strings.EqualFold(w, q.Claim.UUID) {
		return hold("correct its uuid in its file, or its nics if they are another machine's, and apply", "%s is declared with UUID %q, the machine says %q", q.Machine.Name, w, q.Claim.UUID)
	}
	if q.Twin != "" {
		reason, cure := twins(q.Machine, q.Twin, q.TwinDeclares, q.Claim.UUID)
		return hold(cure, "%s", reason)
	}
	return ClaimDecision{}, true
}

// twins says that two machines have one UUID, whose own it is where one of them
// declares it, and what ends that.
func twins(m *inventory.Machine, twin string, twinDeclares bool, uuid string) (reason, cure string) {
	owner, other := m.Name, twin
	switch {
	case strings.EqualFold(m.UUID, uuid):
	case twinDeclares:
		owner, other = twin, m.Name
	default:
		return fmt.Sprintf("%s and %s say the same UUID %s", m.Name, twin, uuid),
			"give one of them a UUID of its own in its firmware"
	}
	return fmt.Sprintf("%s says the UUID %s, which is the declared one of %s", other, uuid, owner),
		fmt.Sprintf("give %s a UUID of its own in its firmware, or correct the uuid of %s in its file and apply; if they are two cards of one machine, declare it once", other, owner)
}

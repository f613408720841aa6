package provision

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// Purpose is what an intent permits.
type Purpose string

const (
	PurposeDeploy  Purpose = "deploy"  // netboot, and write where the rules allow it
	PurposeInspect Purpose = "inspect" // netboot and look
	PurposeAdopt   Purpose = "adopt"   // netboot, look, and believe what the disk says of itself
	PurposeWipe    Purpose = "wipe"    // netboot, and zero the disk in Consent
)

// Intent is the durable permission to act on one machine. Without its Write
// part it permits power and network boot and nothing more. It is kept after it
// ended, so that its Fence never falls.
type Intent struct {
	Machine string  `json:"machine"`
	Purpose Purpose `json:"purpose"`
	// Epoch of the store it was made in; another epoch voids it.
	Epoch      string           `json:"epoch"`
	Generation inventory.Digest `json:"generation,omitempty"`
	Rendered   inventory.Digest `json:"rendered,omitempty"`
	// Fence rises when the machine was seen off; only its newest value may act.
	Fence int64 `json:"fence"`
	// Boots counts the claims granted under this fence. The nonce of the next
	// claim is derived from it.
	Boots int `json:"boots"`
	// Via is how its BMC makes it boot under this fence, "" from the network; Opened
	// is when the fence was.
	Via    inventory.BootVia `json:"via,omitempty"`
	Opened time.Time         `json:"opened,omitzero"`
	// Board is what its BMC said of it while it was armed under this fence; nil: it was
	// not asked.
	Board *Board `json:"board,omitempty"`
	// Asked: after the last claim a boot script was asked for again.
	Asked bool `json:"asked,omitempty"`
	// Erase: the operator named the machine, so its disk may hold something. What
	// was named is in Consent.
	Erase   bool     `json:"erase,omitempty"`
	Consent *Consent `json:"consent,omitempty"`
	// Quick wipes zero only what makes a disk look used.
	Quick bool `json:"quick,omitempty"`
	// Live is false once the intent ended, whichever way.
	Live  bool        `json:"live"`
	Claim *ClaimState `json:"claim,omitempty"`
	Write *WriteState `json:"write,omitempty"`
	// Earlier is the disk that an earlier attempt of this intent might write.
	Earlier *inventory.DiskID `json:"earlier,omitempty"`
	// Rearmed: the boot override was already set a second time in this attempt.
	Rearmed bool `json:"rearmed,omitempty"`
	// Cycled: in this attempt the written machine was, or must no more be,
	// power-cycled for being silent.
	Cycled  bool             `json:"cycled,omitempty"`
	Plan    inventory.Digest `json:"plan,omitempty"`
	By      string           `json:"by,omitempty"`
	Created time.Time        `json:"created"`
	// Before is the phase that it found the machine in; "" in old records.
	Before Phase `json:"before,omitempty"`
	// HeldBack: a hold ended the attempt before it touched the disk; the machine has
	// its turn again.
	HeldBack bool `json:"heldBack,omitempty"`
	// Gate stands through every later intent, until the disk is written or wiped.
	Gate *Gate `json:"gate,omitempty"`
	// AbortedBy an operator, whose rollout then starts no more; "" nobody.
	AbortedBy string `json:"abortedBy,omitempty"`
}

// Consent is what the operator saw of the disk when naming its machine for an
// erase. A nil one saw nothing, and is about the first disk that is chosen; a
// wipe always has one.
type Consent struct {
	Disk  inventory.DiskID `json:"disk"`
	Holds string           `json:"holds,omitempty"`
}

// covers says whether this disk, with what it holds now, is what was named.
func (c *Consent) covers(d inventory.DiskFacts, holds string) bool {
	return c == nil || c.Disk.Matches(d) == nil && c.Holds == holds
}

// ClaimState is the boot that holds the lease.
type ClaimState struct {
	BootID string     `json:"bootID"`
	UUID   string     `json:"uuid,omitempty"`
	Serial string     `json:"serial,omitempty"`
	Addr   netip.Addr `json:"addr,omitzero"`
	// MAC of the interface it netbooted from; "" in old records.
	MAC inventory.MAC `json:"mac,omitempty"`
	// Identity that it has; "" in old records is L0.
	Identity inventory.Identity `json:"identity,omitempty"`
	// Until is when the lease ends; the agent stops by itself before that.
	Until time.Time `json:"until"`
}

// WriteState is the write intent: permission to erase this one disk, for the
// Purpose of its Intent and no other.
type WriteState struct {
	Disk inventory.DiskID `json:"disk"`
	// Holds is what was on it when the permission was recorded.
	Holds string    `json:"holds,omitempty"`
	At    time.Time `json:"at"`
	// Attempt it was recorded for; a later attempt needs its own.
	Attempt int `json:"attempt"`
	// Erased: the agent said that it changed the first byte.
	Erased bool `json:"erased,omitempty"`
	// Declared is the machine as it was declared then: what is begun is finished,
	// whatever is applied meanwhile.
	Declared *inventory.Machine `json:"declared,omitempty"`
	// Gate that every boot goes through afterwards, as it was approved; nil: none.
	Gate *Gate `json:"gate,omitempty"`
}

// WriteName names the write that the intent's present fence permits: what is on
// the disk afterwards says so. A restored store counts its fences anew, under an
// epoch of its own.
func (in *Intent) WriteName() string { return fmt.Sprintf("%s.%d", in.Epoch, in.Fence) }

// LeaseTime is how long a claim lasts without a report.
const LeaseTime = 5 * time.Minute

// LeaseGrace is waited beyond a lease before a newer fence may be given to a
// machine that was not seen off: the agent's clock may run slower than ours.
const LeaseGrace = time.Minute

// MaxRestarts of the ramdisk within one attempt.
const MaxRestarts = 3

// Key derives every nonce and token. It never leaves the server.
type Key [32]byte

// keyed is an HMAC to be used again: each boot script needs two, and a new one costs
// as much memory as the script.
type keyed struct {
	key  Key
	mac  hash.Hash
	text []byte
}

var keyedHMACs = sync.Pool{New: func() any { return new(keyed) }}

func (k Key) sum(parts ...string) string {
	h := keyedHMACs.Get().(*keyed)
	defer keyedHMACs.Put(h)
	if h.mac == nil || h.key != k {
		h.key, h.mac = k, hmac.New(sha256.New, k[:])
	}
	b := h.text[:0]
	for _, p := range parts {
		b = append(append(strconv.AppendInt(b, int64(len(p)), 10), ':'), p...) // lengths, so that no two lists collide
	}
	h.mac.Reset()
	h.mac.Write(b)
	sum := h.mac.Sum(b[:0])
	h.text = hex.AppendEncode(sum, sum[:16])
	return string(h.text[len(sum):])
}

// Nonce of the claim after boots granted ones. Derived, not stored: rendering a
// script writes nothing, and every server gives the same answer. The purpose is
// in it, and in the token: what booted for one never acts for another.
// So is the way that it came by: what stands on a medium cannot be asked for.
func (k Key) Nonce(in *Intent, boots int) string {
	return k.sum("claim"+string(in.Via), string(in.Purpose), in.Epoch, in.Machine, strconv.FormatInt(in.Fence, 10), strconv.Itoa(boots))
}

// Trace names one attempt in logs, packets, on consoles and in timelines. It is
// public and permits nothing. Derived like the nonce, so that a DHCP reply, a
// script and a restarted server say the same.
func (k Key) Trace(s State) string {
	in := s.Intent
	if in == nil {
		return ""
	}
	return k.sum("trace", in.Epoch, in.Machine, in.Created.UTC().Format(time.RFC3339Nano), strconv.Itoa(s.Status.Attempt))[:ipxe.TraceLen]
}

// AgentToken is the bearer token of the boot that claimed.
func (k Key) AgentToken(in *Intent) string {
	return in.Machine + "." + k.sum("agent", string(in.Purpose), in.Epoch, in.Machine, fmt.Sprint(in.Fence), fmt.Sprint(in.Boots), in.Claim.BootID)
}

// ReportToken lets the installed system say that what one write put on its disk
// has booted, and nothing else. It holds for as long as the key does: the word of
// a disk stays true when the store has come back from a backup, and permits
// nothing.
func (k Key) ReportToken(machine string, generation, rendered inventory.Digest, write string) string {
	return machine + "." + k.sum("report", machine, string(generation), string(rendered), write)
}

// DiscoveryToken lets a ramdisk booted for discovery post one inventory and ask
// for an order. It names the hardware address it was made for.
func (k Key) DiscoveryToken(epoch string, mac inventory.MAC) string {
	return discoverPrefix + strings.ReplaceAll(string(mac), ":", "-") + "." + k.sum("discover", epoch, string(mac))
}

const discoverPrefix = "discover."

// tokenMAC is the hardware address a discovery token speaks for, false for
// every other token; nothing is verified yet.
func tokenMAC(token string) (inventory.MAC, bool) {
	rest, ok := strings.CutPrefix(token, discoverPrefix)
	if !ok {
		return "", false
	}
	mac, _, ok := strings.Cut(rest, ".") // a machine named "discover" has no second dot
	return inventory.MAC(strings.ReplaceAll(mac, "-", ":")), ok
}

// tokenMachine is the machine a token speaks for; nothing is verified yet.
func tokenMachine(token string) string {
	machine, _, _ := strings.Cut(token, ".")
	return machine
}

func sameToken(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }

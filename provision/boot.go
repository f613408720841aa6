package provision

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// RamdiskFiles are the paths, below the boot listener's root, of one
// architecture's kernel and ramdisk.
type RamdiskFiles struct {
	Kernel string
	Initrd string
	// Unified is both in one, signed by the operator, and Unsigned as it was built; ""
	// there is none.
	Unified, Unsigned string
}

// bootQuestion is everything "what may this machine boot now" depends on: all
// of it durable, but for the time that the ramdisk sets its clock from.
type bootQuestion struct {
	Client  ipxe.Client
	Machine *inventory.Machine // nil: undeclared
	State   State
	Unknown inventory.UnknownMode // of the client's Network
	VLAN    int                   // of the client's Network; 0: none
	// Seen is when an undeclared machine's inventory arrived; zero: never. Empty
	// tells that no disk of it holds a partition table.
	Seen  time.Time
	Empty bool

	// Carried: it asks with the one-time token that came through its BMC.
	Carried bool

	Key      Key
	Epoch    string
	AgentURL string         // https://ADDRESS:PORT as the machine reaches us
	Syslog   netip.AddrPort // where it may log to; zero: nowhere
	CA       inventory.Digest
	Arch     inventory.Arch // declared, else what its firmware says
	Ramdisk  RamdiskFiles   // zero: there is none for Arch
	Static   []string       // arguments that tell the ramdisk its address; nil: DHCP does
	Now      time.Time
}

// DiscoveryRest is how long a discovered machine keeps to its own disk before
// it is looked at again.
const DiscoveryRest = 10 * time.Minute

// boot decides. It never guesses towards the ramdisk: any doubt is the local disk.
func boot(q bootQuestion) ipxe.Spec {
	if q.Machine == nil {
		return bootUnknown(q)
	}
	name := q.Machine.Name
	local := func(reason string) ipxe.Spec { return bootLocal(q, reason) }
	st, in := q.State.Status, q.State.Intent
	if g := gated(q.State); g != nil {
		return bootGate(q, g)
	}
	switch {
	case st.Hold != nil:
		return local("held: " + st.Hold.Reason)
	case in == nil || !in.Live:
		return local("nothing to do")
	case in.Epoch != q.Epoch:
		return local("its intent is from another store")
	case !mayBoot(st.Step):
		return local(fmt.Sprintf("%s, %s", st.Phase, st.Step))
	case in.Via != "" && !q.Carried:
		return local(fmt.Sprintf("it boots via %s, and this asks by its hardware address alone", in.Via))
	}
	return ramdisk(q, name, nonceArg+q.Key.Nonce(in, in.Boots), fmt.Sprintf("%s, attempt %d", in.Purpose, st.Attempt))
}

// bootLocal sends a declared machine to its disk, in the way that it is declared to
// take there. To be silent is the answer to what loads something; the system on
// the disk gets its address all the same.
func bootLocal(q bootQuestion, reason string) ipxe.Spec {
	b := q.Machine.Boot
	s := ipxe.Spec{Kind: ipxe.SpecLocal, Machine: q.Machine.Name, Reason: reason, Loader: b.Loader, SecureBoot: q.Machine.SecureBoot, Local: b.Local}
	if b.Local == inventory.LocalSilent && q.Client.Loader != ipxe.LoaderOS {
		s.Kind = ipxe.SpecIgnore
	}
	return s
}

func bootUnknown(q bootQuestion) ipxe.Spec {
	switch q.Unknown {
	case inventory.UnknownLocal:
		return ipxe.Spec{Kind: ipxe.SpecLocal, Reason: "not declared; this network lets it boot its disk"}
	case inventory.UnknownDiscover:
		if !q.Seen.IsZero() && !q.Empty && q.Now.Sub(q.Seen) < DiscoveryRest {
			return ipxe.Spec{Kind: ipxe.SpecLocal, Reason: "not declared; its inventory is known"}
		}
		return ramdisk(q, "", "recast.discover="+q.Key.DiscoveryToken(q.Epoch, q.Client.MAC), "not declared; discovery")
	}
	return ipxe.Spec{Kind: ipxe.SpecIgnore, Reason: "not declared"}
}

func ramdisk(q bootQuestion, machine, key, reason string) ipxe.Spec {
	var b inventory.Boot
	s := ipxe.Spec{Kind: ipxe.SpecRamdisk, Machine: machine, Reason: reason}
	local := func(reason string) ipxe.Spec { return ipxe.Spec{Kind: ipxe.SpecLocal, Reason: reason} }
	if m := q.Machine; m != nil {
		b, s.Loader, s.SecureBoot = m.Boot, m.Boot.Loader, m.SecureBoot
		s.Trace = q.Key.Trace(q.State)
		local = func(reason string) ipxe.Spec { return bootLocal(q, reason) }
	}
	if cpu := q.Client.Arch.CPU(); cpu != "" && cpu != q.Arch {
		return local(fmt.Sprintf("its firmware is %s, and the machine is declared %s", q.Client.Arch, q.Arch))
	}
	if q.Ramdisk.Kernel == "" {
		return local(fmt.Sprintf("there is no ramdisk for %s: recast ramdisk build", q.Arch))
	}
	whole := unified(q)
	s.Kernel, s.Initrds = q.Ramdisk.Kernel, []string{q.Ramdisk.Initrd}
	if whole != "" {
		s.Kernel, s.Initrds = whole, nil
	}
	s.Args = make([]string, 0, 13) // of most machines all of them
	s.Args = append(s.Args,
		"recast.url="+q.AgentURL,
		"recast.ca="+q.CA.String(),
		"recast.time="+strconv.FormatInt(q.Now.Unix(), 10),
		"recast.mac="+q.Client.MAC.String(),
		key,
	)
	s.Args = append(s.Args, b.ConsoleArgs(q.Arch)...)
	s.Args = append(s.Args, "panic=30")
	if q.VLAN != 0 {
		s.Args = append(s.Args, fmt.Sprintf("recast.vlan=%d", q.VLAN))
	}
	if q.Syslog.IsValid() {
		s.Args = append(s.Args, "recast.syslog="+q.Syslog.String())
	}
	if s.Trace != "" {
		s.Args = append(s.Args, "recast.trace="+s.Trace)
	}
	s.Args = append(s.Args, q.Static...)
	if whole != "" {
		s.Args = append(s.Args, sealArg+q.Key.seal(q.Epoch, machine, strings.Join(s.Args, " ")))
	}
	return s
}

// unified is the ramdisk as one UEFI program, where the firmware starts that: GRUB cannot
// load it. Under Secure Boot it is the one that the owner signed, with a loader of his. A
// TPM is told of programs, so that with one kernel and initrd alike are measured.
func unified(q bootQuestion) string {
	if q.Machine == nil || q.Client.Loader != ipxe.LoaderIPXE {
		return ""
	}
	_, imported := q.Machine.Boot.LoaderDigest()
	switch {
	case q.Machine.SecureBoot && imported:
		return q.Ramdisk.Unified
	case !q.Machine.SecureBoot && q.Client.Arch.UEFI() && q.State.Status.TPM != nil:
		return q.Ramdisk.Unsigned
	}
	return ""
}

// agentURL is where a machine reaches the agent API.
func agentURL(server netip.Addr, port int) string {
	return "https://" + netip.AddrPortFrom(server, uint16(port)).String()
}

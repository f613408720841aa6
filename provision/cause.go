package provision

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
)

// suspects is all that causes are looked for in.
type suspects struct {
	View     View
	Timeline []TimelineEntry
	Network  *inventory.Network // of its first interface; nil unknown
	Attached bool               // the server has an address on it
	Findings []string           // of the DHCP server
	// Strangers are undeclared machines that asked lately.
	Strangers []inventory.Observation
	// Silent are other machines of its network that were switched on, and not heard.
	Silent []string
	BMC    bmcNow
}

const (
	// quietAgent is how long an agent that reports every second says nothing.
	quietAgent = 20 * time.Second
	// slowWrite is what no disk that is in order stays below, bytes a second.
	slowWrite = 20e6
	// early is when silence says nothing yet: a kernel starts, firmware tests itself.
	early = 45 * time.Second
	// looped is how often a thing happens once too often in one boot.
	looped = 3
	// oldIPXE is the last major version of iPXE that lacks what 2.0 brought.
	oldIPXE = "1.0."
)

// diagnose names what is missing more closely than the step does, "" where it
// cannot, and what may stand behind it, the likeliest first.
func diagnose(q suspects, now time.Time) (string, []Cause) {
	d := &diagnosis{suspects: q, trail: follow(q.Timeline), now: now, name: q.View.Name, st: q.View.Status}
	step := d.st.Step
	if d.st.Phase == Failed {
		step = StepName(d.trail.step)
	}
	if d.off(step) || d.died(step) {
		return d.missing, d.causes
	}
	switch step {
	case StepStopping, StepArming, StepPowering, StepPowerOff, StepRestarting:
		d.power()
	case StepBooting, StepAwaitingPerson:
		d.boot()
	case StepClaiming:
		d.claim()
	case StepInspecting, StepWriting, StepVerifying:
		d.work()
	case StepStarting:
		d.start()
	case StepNone:
		d.again()
	}
	return d.missing, d.causes
}

type diagnosis struct {
	suspects
	trail
	now     time.Time
	name    string
	st      Status
	missing string
	causes  []Cause
}

func (d *diagnosis) cause(code, next, format string, args ...any) {
	d.causes = append(d.causes, Cause{Code: code, Text: fmt.Sprintf(format, args...), Next: next})
}

func (d *diagnosis) lacks(format string, args ...any) { d.missing = fmt.Sprintf(format, args...) }

func (d *diagnosis) network() string {
	if d.Network == nil {
		return "NETWORK"
	}
	return d.Network.Name
}

func (d *diagnosis) capture() string {
	return fmt.Sprintf("recast capture %s --for 2m -w FILE", d.name)
}

func (d *diagnosis) console() string { return "look at its console" }

// off tells whether the machine is switched off when it should run.
func (d *diagnosis) off(step StepName) bool {
	switch step {
	case StepBooting, StepClaiming, StepInspecting, StepWriting, StepVerifying, StepStarting:
	default:
		return false
	}
	if !d.BMC.off() {
		return false
	}
	d.lacks("it is switched off, as its BMC shows just now")
	// Switched on by itself it finds that it is not its turn, but for the system that
	// is on its disk.
	again := map[Phase]string{Cleaning: "wipe", Inspecting: "inspect"}
	verb := cmp.Or(again[d.st.Phase], "retry")
	next := fmt.Sprintf("recast abort %s, then recast %s %s, which begins anew", d.name, verb, d.name)
	switch {
	case d.st.Phase == Failed:
		next = "recast retry " + d.name
	case step == StepStarting:
		next = fmt.Sprintf("recast power on %s after recast abort %s, which ends the wait", d.name, d.name)
	}
	d.cause("powered-off", next, "somebody switched it off, it lost its power, or it powered itself off")
	return true
}

// died tells whether the ramdisk said why it is no more.
func (d *diagnosis) died(step StepName) bool {
	switch step {
	case StepClaiming, StepInspecting, StepWriting, StepVerifying:
	default:
		return false
	}
	words := fmt.Sprintf("recast explain %s --lines 200 shows its last words; it restarts by itself", d.name)
	switch {
	case d.panicked != "":
		d.lacks("the ramdisk's kernel has panicked")
		d.cause("kernel-panic", words, "%s", d.panicked)
	case d.stopped != "":
		d.lacks("the ramdisk has given up")
		d.cause("agent-stopped", words, "%s", d.stopped)
	default:
		return false
	}
	if d.disk != "" {
		d.diskErrors()
	}
	return true
}

func (d *diagnosis) diskErrors() {
	d.cause("disk-errors", "recast describe "+d.name+" names the disk: replace it, or its cable", "its kernel says: %s", d.disk)
}

// soon is said first of what may only need its time.
func (d *diagnosis) soon(since time.Time, format string, args ...any) {
	if d.st.Phase != Failed && d.now.Sub(since) < early {
		d.cause("on-its-way", "nothing yet: ask again in a minute", format, args...)
	}
}

// bmcWords are what the errors of package bmc say, and what to do.
var bmcWords = []struct{ code, has, next string }{
	{"bmc-auth", "refused the user or password", "recast secret set SECRET, then: recast retry MACHINE"},
	{"bmc-locked", "has locked the account, or this server, out", "find who logs in with a wrong password and unlock it in the BMC's own pages, or wait until the BMC does; then: recast retry MACHINE"},
	{"bmc-other-board", "nothing was switched", "correct bmc.url of MACHINE and apply, or where that is its BMC: recast bmc enrol MACHINE, then: recast retry MACHINE"},
	{"bmc-certificate", "certificate", "compare it with the BMC's own console, set bmc.pin and apply"},
	{"bmc-cipher", "cipher suite", "allow suite 17 in the BMC, or set bmc.cipherSuite: 3 for this machine"},
	{"bmc-cipher", "RMCP+ status 0x11", "allow suite 17 in the BMC, or set bmc.cipherSuite: 3 for this machine"},
	{"bmc-licence", "icense", "the BMC's licence lacks this: install one, or declare bmc.url as ipmi://"},
	{"bmc-sessions", "session", "end sessions in the BMC's own pages, or restart the BMC"},
	{"bmc-busy", "the BMC is busy", "it is asked again; where it stays so, restart the BMC"},
	{"bmc-unreachable", "does not answer", "check bmc.url, its cable and the route: recast power status MACHINE"},
	{"bmc-unreachable", "did not answer in time", "check bmc.url, its cable and the route: recast power status MACHINE"},
	{"bmc-unsupported", "does not offer this", "declare bmc.url with the other protocol (redfish:// or ipmi://)"},
	{"bmc-lies", "the change was not seen", "it says yes and does nothing: restart the BMC, or update its firmware"},
	{"bmc-rejected", "rejected the request", "see its own log: recast power status MACHINE"},
}

// power is about what the BMC says.
func (d *diagnosis) power() {
	text := d.bmc
	if text == "" {
		text = d.st.LastError
	}
	if text == "" && d.BMC.err != nil {
		text = d.BMC.err.Error()
	}
	d.bmcCause(text)
}

// bmcCause is what stands behind a BMC's refusal.
func (d *diagnosis) bmcCause(text string) {
	secret := "SECRET"
	if m := d.View.Machine; m != nil && m.BMC != nil && m.BMC.Credentials != "" {
		secret = m.BMC.Credentials
	}
	for _, w := range bmcWords {
		if strings.Contains(text, w.has) {
			next := strings.NewReplacer("SECRET", secret, "MACHINE", d.name).Replace(w.next)
			d.cause(w.code, next, "%s", text)
			return
		}
	}
}

// claim is about the way from the script to the agent's first word.
func (d *diagnosis) claim() {
	switch {
	case d.Claim != nil && d.Claim.Error != "":
		d.lacks("its claim was %s", d.Claim.Error)
		d.cause("claim-refused", "see the findings; recast retry "+d.name, "%s", d.Claim.Error)
	case d.TLS != nil:
		d.lacks("the ramdisk runs, and its TLS connection to the agent port failed: %s", d.TLS.Error)
		d.cause("agent-no-tls", "recast doctor compares the clock and the certificate; recast retry "+d.name,
			"its clock is far off, it was given another CA's digest by an older script, or something between intercepts TLS")
	case d.Kernel == nil:
		d.lacks("it has its boot script and has not fetched the kernel")
		if d.Script != nil {
			d.soon(d.Script.Time, "it may be fetching the kernel: that shows here when it ends")
		}
		d.oldLoader()
		d.cause("script-fetched-kernel-not", "recast doctor; "+d.console(), "the URL in the script does not lead to this server: a firewall before the boot port, or a wrong address of the server")
		d.cause("http-stalls", "recast doctor compares the MTU; "+d.capture(), "it fetches the kernel and gets nowhere: large packets are dropped on the way (MTU)")
	case d.Kernel.Error != "" || d.Initrd != nil && d.Initrd.Error != "":
		o := d.Kernel
		if o.Error == "" {
			o = d.Initrd
		}
		d.lacks("%s did not arrive: %d of %d bytes, %s", o.Detail, o.Bytes, o.Size, o.Error)
		if o.Bytes == 0 {
			d.cause("kernel-not-found", "recast ramdisk build", "the ramdisk's files are gone or cannot be read")
			return
		}
		d.cause("http-stalls", "recast doctor compares the MTU; "+d.capture(), "large packets are dropped on the way (MTU), or it was switched off meanwhile")
		d.cause("no-memory", d.console(), "it has not enough memory for the ramdisk")
	case d.Initrd == nil:
		d.lacks("it has the kernel and has not fetched the ramdisk")
		d.soon(d.Kernel.Time, "it may be fetching the ramdisk: that shows here when it ends")
		d.oldLoader()
		d.cause("no-memory", d.console(), "it has not enough memory, or the loader hangs")
	case d.System == nil:
		d.lacks("it has kernel and ramdisk, and the ramdisk has not asked for an address")
		d.soon(d.Initrd.Time, "its kernel starts")
		if m := d.View.Machine; m != nil && m.SecureBoot && d.Script != nil && d.Script.Time.After(d.Initrd.Time) {
			d.cause("kernel-refused", "have its firmware trust who signed that (recast ramdisk export, sign, import), or an imported iPXE know the command shim, as those since 2023 do",
				"it asked for its script again: under Secure Boot its loader could not start %s", d.Kernel.Detail)
		}
		d.cause("ramdisk-no-network", d.console(), "no driver for its network card in the ramdisk, or the driver's firmware file is missing")
		d.cause("ramdisk-dies", d.console(), "the kernel does not start, or panics")
	case d.Unanswered != nil || d.System.Kind == inventory.SawUnanswered:
		d.unanswered(d.System)
	case d.System.Kind == inventory.SawDiscover:
		d.lacks("the ramdisk asks for an address and has taken none")
		d.offerLost()
	default:
		d.lacks("the ramdisk has its address and has not reached the agent port")
		d.cause("agent-blocked", "recast doctor", "a firewall drops the agent port (8443), or another process holds it")
		d.cause("agent-no-tls", "recast doctor compares the clock and the certificate", "its clock is far off, so that it does not believe our certificate")
	}
}

// oldLoader: the 2019 iPXE of Debian 12 has no HTTPS and hangs on some machines.
func (d *diagnosis) oldLoader() {
	if d.Script != nil && strings.HasPrefix(d.Script.Version, oldIPXE) {
		d.cause("ipxe-too-old", "give it a newer loader", "its iPXE is %s, which has no HTTPS and known hangs", d.Script.Version)
	}
}

// work is about an agent that has claimed.
func (d *diagnosis) work() {
	if d.st.Phase == Failed {
		d.workFailed()
		return
	}
	p := d.st.Progress
	heard := d.st.Since
	if p != nil {
		heard = p.At
	}
	switch quiet := d.now.Sub(heard).Round(time.Second); {
	case quiet >= quietAgent:
		d.lacks("nothing was heard from the ramdisk for %s", quiet)
		if d.disk != "" {
			d.diskErrors()
		}
		d.cause("agent-quiet", d.console(), "it restarted, lost its network, or its disk does not answer; what it does next, it does after asking here")
	case p != nil && p.Rate > 0 && p.Rate < slowWrite && p.At.Sub(p.Since) >= quietAgent:
		d.lacks("the ramdisk is at work, at %s/s", inventory.SizeText(int64(p.Rate)))
		if d.disk != "" {
			d.diskErrors()
		}
		d.cause("write-slow", "recast describe "+d.name+" names the disk; "+d.console()+" for errors of it", "a disk that fails, a controller without its cache, or a network that loses packets")
	}
}

func (d *diagnosis) workFailed() {
	text := d.st.LastError
	switch {
	case strings.Contains(text, "choose a disk"):
		d.cause("disk-not-matched", "recast describe "+d.name+" lists its disks; correct disk.select and apply", "the hints must fit exactly one disk")
	case strings.Contains(text, "its configuration needs") || strings.Contains(text, "-byte blocks"):
		d.cause("disk-unfit", "give it another disk, or its definition another image", "the image does not fit on the disk that was chosen")
	case strings.Contains(text, "reads back") || strings.Contains(text, "digest") || strings.Contains(text, "damaged") || strings.Contains(text, "frame"):
		d.cause("digest-mismatch", "recast image verify "+cmp.Or(d.View.Image, "IMAGE")+"; recast retry "+d.name, "the bytes are not those that were declared: a bad copy here, memory that flips bits, or a disk that lies")
	case strings.Contains(text, "fetch"):
		d.cause("image-not-fetched", "recast doctor; recast retry "+d.name, "the image could not be fetched from this server")
	case strings.Contains(text, "nothing was heard"):
		d.cause("agent-quiet", d.console()+"; recast retry "+d.name, "it was switched off, lost its network, or its disk hangs")
	case strings.Contains(text, "no byte moved"):
		d.cause("write-slow", d.console()+" for errors of the disk", "the disk takes no more bytes")
	}
}

// start is about a disk that was written and a system that says nothing.
func (d *diagnosis) start() {
	if d.st.Power == "off" && d.BMC.power != bmc.PowerOn {
		d.cause("powered-off", fmt.Sprintf("recast power on %s after recast abort %s, which ends the wait", d.name, d.name), "its BMC showed it off")
	}
	if d.TLS != nil {
		d.cause("agent-no-tls", "recast doctor; set the system's clock", "the system runs, and its TLS connection failed: %s", d.TLS.Error)
	}
	if d.Script != nil {
		d.cause("boots-again", d.order(),
			"it asked for a boot script again (%d times) instead of starting its disk: the BMC's override stands still, or the disk is not in the boot order", d.Scripts)
	} else if d.Asked != nil {
		d.cause("boots-again", d.console(), "its firmware asks for a network boot again: the disk is not first, or did not start")
	}
	switch {
	case d.System == nil || d.Script != nil:
	case d.System.Kind == inventory.SawUnanswered:
		d.unanswered(d.System)
	case d.System.Kind == inventory.SawDiscover:
		d.lacks("the installed system asks for an address and has taken none")
		d.offerLost()
	default:
		d.cause("agent-blocked", "recast doctor", "the system runs, and cannot reach the agent port of this server, or its report does not start")
	}
	if d.Script == nil && d.System == nil && d.Asked == nil {
		d.soon(d.st.Since, "its firmware and its system start")
		d.cause("disk-not-started", d.console(), "the disk is not in the firmware's boot order, or the system hangs as it starts")
		d.cause("agent-blocked", "recast doctor", "the system came up but cannot reach the server's agent port")
	}
	if d.st.Power != "off" && d.BMC.power == "" {
		d.cause("powered-off", "recast power status "+d.name+" asks its BMC", "it was switched off since")
	}
}

// order is what to do about the boot order of a machine: one with a gate needs the
// network first in it.
func (d *diagnosis) order() string {
	next := "recast describe " + d.name + " for findings on its boot order"
	if d.st.Gate != nil {
		return next + "; its disk comes second, behind the network, for its gate"
	}
	return next + "; set the disk first in its setup"
}

// again is about a machine that has nothing to do, and boots from the network: as each
// does that has a gate, which counts by itself those that do not come up.
func (d *diagnosis) again() {
	if d.st.Phase != Active || d.st.Gate != nil || d.Scripts < looped || d.now.Sub(d.Script.Time) > time.Hour {
		return
	}
	d.cause("boots-again", d.order(),
		"it asked for a boot script %d times since it was written, the last time %s ago: it restarts, or does not start its disk", d.Scripts, d.now.Sub(d.Script.Time).Round(time.Second))
}

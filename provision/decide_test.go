package provision

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"recast/inventory"
	"recast/ipxe"
)

// armed is a machine whose ramdisk may claim it.
func armed() State {
	return State{
		Status: Status{Machine: "m1", Phase: Deploying, Step: StepClaiming, Attempt: 1},
		Intent: &Intent{Machine: "m1", Purpose: PurposeDeploy, Epoch: "e", Fence: 3, Live: true},
	}
}

func claimed() State {
	s := armed()
	s.Status.Step = StepWriting
	s.Intent.Boots = 1
	s.Intent.Claim = &ClaimState{BootID: "b1", UUID: "u1", Serial: "S", Addr: netip.MustParseAddr("10.0.0.5"), Until: t0.Add(time.Minute)}
	return s
}

func TestClaimVerdicts(t *testing.T) {
	key := Key{1}
	const first, second = 0, 1 // nonces by the claims granted before
	for _, c := range []struct {
		name   string
		state  State
		nonce  int
		change func(*claimQuestion)
		want   ClaimVerdict
		reason string
		cure   string
		resume bool
	}{
		{name: "the armed machine", state: armed(), want: ClaimGrant},
		{name: "no intent", state: State{}, want: ClaimRefuse, reason: "nothing is armed"},
		{name: "an intent that ended", state: armed(), change: func(q *claimQuestion) { q.State.Intent.Live = false }, want: ClaimRefuse, reason: "nothing is armed"},
		{name: "a held machine", state: armed(), change: func(q *claimQuestion) { q.State.Status.Hold = &Hold{Reason: "ann looks at it"} }, want: ClaimRefuse, reason: "ann looks at it"},
		{name: "not yet off", state: armed(), change: func(q *claimQuestion) { q.State.Status.Step = StepStopping }, want: ClaimRefuse, reason: "no boot is armed"},
		{name: "already starting its disk", state: armed(), change: func(q *claimQuestion) { q.State.Status.Step = StepStarting }, want: ClaimRefuse, reason: "no boot is armed"},
		{name: "a made-up nonce", state: armed(), change: func(q *claimQuestion) { q.Claim.Nonce = "00" }, want: ClaimRefuse, reason: "is not the armed one"},
		{name: "the nonce of an older fence", state: armed(), change: func(q *claimQuestion) { q.State.Intent.Fence++ }, want: ClaimRefuse, reason: "is not the armed one"},
		{name: "the nonce of another epoch", state: armed(), change: func(q *claimQuestion) { q.State.Intent.Epoch = "f" }, want: ClaimRefuse, reason: "is not the armed one"},
		{name: "a later nonce before its time", state: armed(), nonce: second, want: ClaimRefuse, reason: "is not the armed one"},
		{name: "a declared serial that names no board, told by none", state: armed(), change: func(q *claimQuestion) { q.Machine.Serial, q.Claim.Serial = "0123456789", "" }, want: ClaimGrant},
		{name: "a declared serial, and none told", state: armed(), change: func(q *claimQuestion) { q.Machine.Serial, q.Claim.Serial = "T", "" }, want: ClaimHold, reason: `declared with serial "T"`},
		{name: "another serial than declared", state: armed(), change: func(q *claimQuestion) { q.Machine.Serial = "T" }, want: ClaimHold, reason: `declared with serial "T"`},
		{name: "another UUID than declared", state: armed(), change: func(q *claimQuestion) { q.Machine.UUID = "u2" }, want: ClaimHold, reason: `declared with UUID "u2"`},
		{name: "the declared UUID in capitals", state: armed(), change: func(q *claimQuestion) { q.Machine.UUID = "U1" }, want: ClaimGrant},
		{name: "a twin", state: armed(), change: func(q *claimQuestion) { q.Twin = "m2" }, want: ClaimHold, reason: "m1 and m2 say the same UUID", cure: "give one of them a UUID of its own"},
		{name: "a twin that says ours", state: armed(), change: func(q *claimQuestion) {
			q.Twin, q.Machine = "m2", &inventory.Machine{Name: "m1", UUID: q.Claim.UUID}
		}, want: ClaimHold, reason: "m2 says the UUID u1, which is the declared one of m1", cure: "give m2 a UUID of its own in its firmware, or correct the uuid of m1"},
		{name: "a twin whose UUID we say", state: armed(), change: func(q *claimQuestion) { q.Twin, q.TwinDeclares = "m2", true }, want: ClaimHold,
			reason: "m1 says the UUID u1, which is the declared one of m2", cure: "give m1 a UUID of its own in its firmware, or correct the uuid of m2"},
		{name: "from somebody else's lease", state: armed(), change: func(q *claimQuestion) { q.Authoritative, q.Lease = true, "m2" }, want: ClaimRefuse, reason: "is not its lease"},
		{name: "from its own lease", state: armed(), change: func(q *claimQuestion) { q.Authoritative, q.Lease = true, "m1" }, want: ClaimGrant},
		{name: "the reply was lost", state: claimed(), want: ClaimRepeat},
		{name: "the nonce used by another boot", state: claimed(), change: func(q *claimQuestion) { q.Claim.BootID = "b2" }, want: ClaimReplay, reason: "was used already"},
		{name: "the nonce used from elsewhere", state: claimed(), change: func(q *claimQuestion) { q.Remote = netip.MustParseAddr("10.0.0.9") }, want: ClaimReplay, reason: "was used already"},
		{name: "the ramdisk started again", state: claimed(), nonce: second, change: func(q *claimQuestion) { q.Claim.BootID = "b2" }, want: ClaimGrant, resume: true},
		{name: "another machine goes on", state: claimed(), nonce: second, change: func(q *claimQuestion) { q.Claim.BootID, q.Claim.Serial = "b2", "T" }, want: ClaimHold, reason: "a second machine claims"},
		{name: "started too often", state: claimed(), nonce: second, change: func(q *claimQuestion) { q.State.Status.Restarts = MaxRestarts }, want: ClaimRefuse, reason: "started the ramdisk 4 times"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := claimQuestion{Key: key, Machine: &inventory.Machine{Name: "m1"}, State: c.state, Remote: netip.MustParseAddr("10.0.0.5"), Now: t0,
				Claim: inventory.Claim{BootID: "b1", UUID: "u1", Serial: "S"}}
			if c.state.Intent != nil {
				q.Claim.Nonce = key.Nonce(c.state.Intent, c.nonce)
			}
			if c.change != nil {
				c.change(&q)
			}
			got := decideClaim(q)
			if got.Verdict != c.want || got.Resume != c.resume || !strings.Contains(got.Reason, c.reason) || (c.reason == "") != (got.Reason == "") {
				t.Errorf("got %s %q resume %t, want %s %q resume %t", got.Verdict, got.Reason, got.Resume, c.want, c.reason, c.resume)
			}
			if !strings.Contains(got.Cure, c.cure) || (got.Verdict == ClaimHold) != (got.Cure != "") {
				t.Errorf("cure %q, want %q", got.Cure, c.cure)
			}
			if got.Verdict == ClaimGrant && (got.Claim.BootID != q.Claim.BootID || !got.Claim.Until.Equal(t0.Add(LeaseTime))) {
				t.Errorf("granted %+v", got.Claim)
			}
		})
	}
}

func TestBootAnswersTheLocalDiskInEveryDoubt(t *testing.T) {
	ramdisk := RamdiskFiles{Kernel: "/ramdisk/vmlinuz", Initrd: "/ramdisk/initrd.img"}
	decl := &inventory.Machine{Name: "m1"}
	for _, c := range []struct {
		name   string
		q      bootQuestion
		want   ipxe.SpecKind
		reason string
	}{
		{"armed", bootQuestion{Machine: decl, State: armed(), Ramdisk: ramdisk}, ipxe.SpecRamdisk, "deploy, attempt 1"},
		{"writing", bootQuestion{Machine: decl, State: claimed(), Ramdisk: ramdisk}, ipxe.SpecRamdisk, "deploy, attempt 1"},
		{"no ramdisk", bootQuestion{Machine: decl, State: armed()}, ipxe.SpecLocal, "no ramdisk"},
		{"firmware of another architecture", bootQuestion{Machine: decl, State: armed(), Ramdisk: ramdisk, Client: ipxe.Client{Arch: ipxe.FirmwareARM64UEFI}}, ipxe.SpecLocal, "its firmware is arm64 UEFI, and the machine is declared amd64"},
		{"silent when there is nothing to do", bootQuestion{Machine: &inventory.Machine{Name: "m1", Boot: inventory.Boot{Local: inventory.LocalSilent}}, Ramdisk: ramdisk, Client: ipxe.Client{Loader: ipxe.LoaderFirmware}}, ipxe.SpecIgnore, "nothing to do"},
		{"silent, but for an armed boot", bootQuestion{Machine: &inventory.Machine{Name: "m1", Boot: inventory.Boot{Local: inventory.LocalSilent}}, State: armed(), Ramdisk: ramdisk, Client: ipxe.Client{Loader: ipxe.LoaderFirmware}}, ipxe.SpecRamdisk, "deploy, attempt 1"},
		{"silent, but for its system's address", bootQuestion{Machine: &inventory.Machine{Name: "m1", Boot: inventory.Boot{Local: inventory.LocalSilent}}, Ramdisk: ramdisk, Client: ipxe.Client{Loader: ipxe.LoaderOS}}, ipxe.SpecLocal, "nothing to do"},
		{"nothing to do", bootQuestion{Machine: decl, Ramdisk: ramdisk}, ipxe.SpecLocal, "nothing to do"},
		{"held", bootQuestion{Machine: decl, State: State{Status: Status{Step: StepBooting, Hold: &Hold{Reason: "ann"}}, Intent: armed().Intent}, Ramdisk: ramdisk}, ipxe.SpecLocal, "held: ann"},
		{"another store's intent", bootQuestion{Machine: decl, State: armed(), Epoch: "f", Ramdisk: ramdisk}, ipxe.SpecLocal, "another store"},
		{"still being stopped", bootQuestion{Machine: decl, State: State{Status: Status{Phase: Deploying, Step: StepStopping}, Intent: armed().Intent}, Ramdisk: ramdisk}, ipxe.SpecLocal, "deploying, stopping"},
		{"written", bootQuestion{Machine: decl, State: State{Status: Status{Phase: Deploying, Step: StepStarting}, Intent: armed().Intent}, Ramdisk: ramdisk}, ipxe.SpecLocal, "deploying, starting"},
		{"a stranger", bootQuestion{Unknown: inventory.UnknownIgnore, Ramdisk: ramdisk}, ipxe.SpecIgnore, "not declared"},
		{"a stranger on a network of disks", bootQuestion{Unknown: inventory.UnknownLocal, Ramdisk: ramdisk}, ipxe.SpecLocal, "not declared"},
		{"a stranger to be discovered", bootQuestion{Unknown: inventory.UnknownDiscover, Ramdisk: ramdisk}, ipxe.SpecRamdisk, "discovery"},
		{"a stranger that was seen", bootQuestion{Unknown: inventory.UnknownDiscover, Seen: t0.Add(-time.Minute), Ramdisk: ramdisk}, ipxe.SpecLocal, "its inventory is known"},
		{"an empty one that was seen", bootQuestion{Unknown: inventory.UnknownDiscover, Seen: t0.Add(-time.Minute), Empty: true, Ramdisk: ramdisk}, ipxe.SpecRamdisk, "discovery"},
		{"seen long ago", bootQuestion{Unknown: inventory.UnknownDiscover, Seen: t0.Add(-time.Hour), Ramdisk: ramdisk}, ipxe.SpecRamdisk, "discovery"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := c.q
			q.Now, q.AgentURL, q.CA, q.Arch = t0, "https://10.0.0.1:8443", imgA, inventory.AMD64
			q.Client.MAC = "52:54:00:00:00:05"
			if q.Epoch == "" {
				q.Epoch = "e"
			}
			got := boot(q)
			if got.Kind != c.want || !strings.Contains(got.Reason, c.reason) {
				t.Fatalf("got %s %q, want %s %q", got.Kind, got.Reason, c.want, c.reason)
			}
			key := false
			for _, a := range got.Args {
				key = key || strings.HasPrefix(a, "recast.nonce=") || strings.HasPrefix(a, "recast.discover=")
			}
			if key != (got.Kind == ipxe.SpecRamdisk) {
				t.Errorf("%s with %q", got.Kind, got.Args)
			}
			if diff := cmp.Diff(got, boot(q), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("the same question has two answers:\n%s", diff)
			}
		})
	}
}

func TestTheRamdiskGetsTheDeclaredConsolesAndTheLoaderItsName(t *testing.T) {
	decl := &inventory.Machine{Name: "m1", SecureBoot: true, Boot: inventory.Boot{Loader: "ipxe", Console: []string{"tty0", "ttyS1,57600n8"}}}
	got := boot(bootQuestion{Machine: decl, State: armed(), Epoch: "e", Arch: inventory.AMD64, Ramdisk: RamdiskFiles{Kernel: "/k", Initrd: "/i"}})
	if n := len(got.Args); n < 4 || !slices.Equal(got.Args[n-4:], []string{"console=tty0", "console=ttyS1,57600n8", "panic=30", "recast.trace=" + got.Trace}) || len(got.Trace) != ipxe.TraceLen {
		t.Errorf("arguments %q", got.Args)
	}
	if got.Loader != "ipxe" || !got.SecureBoot {
		t.Errorf("loader %q, Secure Boot %v", got.Loader, got.SecureBoot)
	}
	if slices.ContainsFunc(got.Args, func(a string) bool { return strings.HasPrefix(a, "recast.vlan") }) {
		t.Errorf("arguments %q name a VLAN", got.Args)
	}
	got = boot(bootQuestion{Machine: decl, State: armed(), Epoch: "e", Arch: inventory.AMD64, VLAN: 100, Ramdisk: RamdiskFiles{Kernel: "/k", Initrd: "/i"}})
	if !slices.Contains(got.Args, "recast.vlan=100") {
		t.Errorf("arguments %q name no VLAN", got.Args)
	}
}

// TestUnifiedRamdiskIsForWhomItsLoaderStarts: the owner's is refused by others' firmware,
// the unsigned one is for a TPM to measure, and GRUB cannot load any.
func TestUnifiedRamdiskIsForWhomItsLoaderStarts(t *testing.T) {
	digest, enrolled := string(imgA), &TPM{AK: []byte("key")}
	files := RamdiskFiles{Kernel: "/k", Initrd: "/i", Unified: "/u", Unsigned: "/n"}
	for _, c := range []struct {
		name   string
		decl   inventory.Machine
		loader ipxe.LoaderKind
		files  RamdiskFiles
		kernel string
		tpm    *TPM
		arch   ipxe.Firmware
	}{
		{"an imported iPXE under Secure Boot", inventory.Machine{SecureBoot: true, Boot: inventory.Boot{Loader: digest}}, ipxe.LoaderIPXE, files, "/u", nil, 0},
		{"no signed ramdisk", inventory.Machine{SecureBoot: true, Boot: inventory.Boot{Loader: digest}}, ipxe.LoaderIPXE, RamdiskFiles{Kernel: "/k", Initrd: "/i"}, "/k", nil, 0},
		{"an imported GRUB", inventory.Machine{SecureBoot: true, Boot: inventory.Boot{Loader: digest}}, ipxe.LoaderGRUB, files, "/k", enrolled, ipxe.FirmwareX64UEFI},
		{"Debian's GRUB", inventory.Machine{SecureBoot: true}, ipxe.LoaderGRUB, files, "/k", enrolled, ipxe.FirmwareX64UEFI},
		{"without Secure Boot", inventory.Machine{Boot: inventory.Boot{Loader: digest}}, ipxe.LoaderIPXE, files, "/k", nil, ipxe.FirmwareX64UEFI},
		{"a TPM that measures it", inventory.Machine{}, ipxe.LoaderIPXE, files, "/n", enrolled, ipxe.FirmwareX64UEFI},
		{"a TPM that a person trusts", inventory.Machine{}, ipxe.LoaderIPXE, files, "/n", &TPM{}, ipxe.FirmwareX64UEFI},
		{"a TPM and a BIOS", inventory.Machine{}, ipxe.LoaderIPXE, files, "/k", enrolled, ipxe.FirmwareBIOS},
		{"a TPM, and GRUB without Secure Boot", inventory.Machine{}, ipxe.LoaderGRUB, files, "/k", enrolled, ipxe.FirmwareX64UEFI},
		{"a TPM, and no stub for it", inventory.Machine{}, ipxe.LoaderIPXE, RamdiskFiles{Kernel: "/k", Initrd: "/i"}, "/k", enrolled, ipxe.FirmwareX64UEFI},
		{"a TPM under Secure Boot", inventory.Machine{SecureBoot: true, Boot: inventory.Boot{Loader: digest}}, ipxe.LoaderIPXE, files, "/u", enrolled, ipxe.FirmwareX64UEFI},
	} {
		state := armed()
		state.Status.TPM = c.tpm
		got := boot(bootQuestion{Machine: &c.decl, State: state, Epoch: "e", Arch: inventory.AMD64, Ramdisk: c.files, Client: ipxe.Client{Loader: c.loader, Arch: c.arch}})
		if got.Kind != ipxe.SpecRamdisk || got.Kernel != c.kernel || (len(got.Initrds) == 0) != (c.kernel != "/k") {
			t.Errorf("%s: %s %s %q", c.name, got.Kind, got.Kernel, got.Initrds)
		}
	}
}

func TestAdmissionGivesTheFirstFailingReason(t *testing.T) {
	target := RolloutTarget{To: genA, Rendered: rendA}
	turn := target
	turn.Started = true
	state := func(p Phase, running inventory.Digest) State {
		return State{Status: Status{Phase: p, Running: running, RunningRendered: rendA}}
	}
	held := state(Available, "")
	held.Status.Hold = &Hold{Owner: "ann", Reason: "memory test"}
	all := inventory.Rollout{MaxUnavailable: inventory.IntOrPercent{Value: 100, Percent: true}, MaxFailures: inventory.IntOrPercent{Value: 1}}
	two := all
	two.MaxUnavailable = inventory.IntOrPercent{Value: 2}
	patient := two
	patient.MaxFailures = inventory.IntOrPercent{Value: 10}
	one := patient
	one.MaxUnavailable = inventory.IntOrPercent{Value: 1}
	again := target
	again.Again = true
	fell := turn
	fell.Failed = true
	out := fell
	out.Out = true
	half := state(Available, "")
	half.Status.Unfinished = true
	stopped := turn
	stopped.Aborted = "ann"
	gone := stopped
	gone.Out = true
	canary := all
	canary.Canary = 1
	quarter := all
	quarter.MaxUnavailable = inventory.IntOrPercent{Value: 25, Percent: true}
	pending := map[string]RolloutTarget{"a": target, "b": target, "c": target}
	for _, c := range []struct {
		name    string
		targets map[string]RolloutTarget
		states  map[string]State
		policy  inventory.Rollout
		frozen  string
		blocked Wait
		start   []string
		waiting map[string]string
		stopped string
		done    bool
	}{
		{name: "all at once", targets: pending, policy: all, start: []string{"a", "b", "c"}},
		{name: "frozen before all", targets: map[string]RolloutTarget{"a": target}, states: map[string]State{"a": held}, policy: all, frozen: "maintenance", blocked: Wait{Why: "no image"}, waiting: map[string]string{"a": "frozen: maintenance; recast unfreeze lets rollouts go on"}},
		{name: "held before the wave", targets: map[string]RolloutTarget{"a": target}, states: map[string]State{"a": held}, policy: canary, blocked: Wait{Why: "no image"}, waiting: map[string]string{"a": "held by ann: memory test; recast release a"}},
		{name: "the canary first", targets: pending, policy: canary, start: []string{"a"}, waiting: map[string]string{"b": "waits for the canary: 0 of 1 active; it starts by itself once they are active: recast explain a", "c": "waits for the canary: 0 of 1 active; it starts by itself once they are active: recast explain a"}},
		{name: "after the canary", targets: map[string]RolloutTarget{"a": turn, "b": target}, states: map[string]State{"a": state(Active, genA)}, policy: canary, start: []string{"b"}},
		{name: "a canary of another generation", targets: map[string]RolloutTarget{"a": turn, "b": target}, states: map[string]State{"a": state(Active, genB)}, policy: canary, waiting: map[string]string{"b": "waits for the canary: 0 of 1 active; it starts by itself once they are active: recast explain a"}},
		{name: "room for two", targets: pending, policy: two, start: []string{"a", "b"}, waiting: map[string]string{"c": "maxUnavailable: 2 of the group are away; it starts by itself once one of them is back"}},
		{name: "one is away already", targets: map[string]RolloutTarget{"a": turn, "b": target, "c": target}, states: map[string]State{"a": state(Deploying, "")}, policy: two, start: []string{"b"}, waiting: map[string]string{"c": "maxUnavailable: 2 of the group are away; it starts by itself once one of them is back"}},
		{name: "a quarter of three is one", targets: pending, policy: quarter, start: []string{"a"}, waiting: map[string]string{"b": "maxUnavailable: 1 of the group are away; it starts by itself once one of them is back", "c": "maxUnavailable: 1 of the group are away; it starts by itself once one of them is back"}},
		{name: "the failure budget is spent", targets: map[string]RolloutTarget{"a": turn, "b": target}, states: map[string]State{"a": state(Failed, "")}, policy: all, waiting: map[string]string{"b": "failure budget spent: 1 of 1 machines failed; mend what failed, then: recast retry a"}, stopped: "failure budget spent: 1 of 1 machines failed"},
		{name: "a failed machine is away", targets: map[string]RolloutTarget{"a": turn, "b": target, "c": target}, states: map[string]State{"a": state(Failed, "")}, policy: patient, start: []string{"b"},
			waiting: map[string]string{"c": "maxUnavailable: 2 of the group are away, 1 of them failed; recast retry a, or take them out of the group"}},
		{name: "failed machines leave no room for others", targets: map[string]RolloutTarget{"a": turn, "b": turn, "c": target}, states: map[string]State{"a": state(Failed, ""), "b": state(Failed, "")}, policy: patient,
			waiting: map[string]string{"c": "maxUnavailable: 2 of the group are away, 2 of them failed; recast retry a b, or take them out of the group"}},
		{name: "a retry needs no room", targets: map[string]RolloutTarget{"a": again, "b": turn, "c": turn, "d": target}, states: map[string]State{"b": state(Failed, ""), "c": state(Failed, "")}, policy: patient, start: []string{"a"},
			waiting: map[string]string{"d": "maxUnavailable: 3 of the group are away, 2 of them failed; recast retry b c, or take them out of the group"}},
		{name: "a retry is stopped by no budget", targets: map[string]RolloutTarget{"a": again, "b": turn, "c": target}, states: map[string]State{"b": state(Failed, "")}, policy: all, start: []string{"a"},
			waiting: map[string]string{"c": "failure budget spent: 1 of 1 machines failed; mend what failed, then: recast retry b"}, stopped: "failure budget spent: 1 of 1 machines failed"},
		{name: "a retry is away before its turn comes", targets: map[string]RolloutTarget{"a": target, "z": again}, policy: one, start: []string{"z"},
			waiting: map[string]string{"a": "maxUnavailable: 1 of the group are away; it starts by itself once one of them is back"}},
		{name: "a machine with half a disk is away", targets: map[string]RolloutTarget{"a": target, "b": turn}, states: map[string]State{"b": half}, policy: one,
			waiting: map[string]string{"a": "maxUnavailable: 1 of the group are away, 1 of them failed; recast retry b, or take them out of the group"}},
		{name: "looking at what failed opens no budget", targets: map[string]RolloutTarget{"a": fell, "b": target}, states: map[string]State{"a": state(Inspecting, "")}, policy: all,
			waiting: map[string]string{"b": "failure budget spent: 1 of 1 machines failed; mend what failed, then: recast retry a"}, stopped: "failure budget spent: 1 of 1 machines failed"},
		{name: "wiping what failed opens no budget", targets: map[string]RolloutTarget{"a": out, "b": target}, states: map[string]State{"a": state(Available, "")}, policy: all,
			waiting: map[string]string{"b": "failure budget spent: 1 of 1 machines failed; recast plan PATH, and apply that"}, stopped: "failure budget spent: 1 of 1 machines failed"},
		{name: "an abort stops the rollout whatever its budget", targets: map[string]RolloutTarget{"a": stopped, "b": target}, states: map[string]State{"a": state(Available, "")}, policy: patient,
			waiting: map[string]string{"b": "stopped: ann aborted a; recast retry a lets the rollout go on; or recast plan PATH, and apply that"}, stopped: "stopped: ann aborted a"},
		{name: "one that was aborted and arrived after all", targets: map[string]RolloutTarget{"a": stopped, "b": target}, states: map[string]State{"a": state(Active, genA)}, policy: patient,
			waiting: map[string]string{"b": "stopped: ann aborted a; recast retry a lets the rollout go on; or recast plan PATH, and apply that"}, stopped: "stopped: ann aborted a"},
		{name: "wiping what was aborted starts no other", targets: map[string]RolloutTarget{"a": gone, "b": target}, states: map[string]State{"a": state(Available, "")}, policy: patient,
			waiting: map[string]string{"b": "stopped: ann aborted a; recast plan PATH, and apply that"}, stopped: "stopped: ann aborted a"},
		{name: "what failed and arrived after all", targets: map[string]RolloutTarget{"a": fell, "b": target}, states: map[string]State{"a": state(Active, genA)}, policy: all, start: []string{"b"}},
		{name: "a new plan mends failed machines first", targets: pending, states: map[string]State{"c": state(Failed, "")}, policy: one, start: []string{"c"},
			waiting: map[string]string{"a": "maxUnavailable: 1 of the group are away, 1 of them failed; recast retry c, or take them out of the group", "b": "maxUnavailable: 1 of the group are away, 1 of them failed; recast retry c, or take them out of the group"}},
		{name: "something else forbids it", targets: map[string]RolloutTarget{"a": target}, policy: all, blocked: Wait{"the image is damaged", "recast image add SOURCE mends it"}, waiting: map[string]string{"a": "the image is damaged; recast image add SOURCE mends it"}},
		{name: "failed and not yet its turn again", targets: map[string]RolloutTarget{"a": turn}, states: map[string]State{"a": state(Failed, "")}, policy: all, stopped: "failure budget spent: 1 of 1 machines failed", done: true},
		{name: "done", targets: map[string]RolloutTarget{"a": turn}, states: map[string]State{"a": state(Active, genA)}, policy: all, done: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := admit(Rollout{Machines: c.targets}, c.policy, c.states, c.frozen, func(string) Wait { return c.blocked })
			said := map[string]string{}
			for m, w := range got.Waiting {
				said[m] = w.String()
				if w.Next == "" {
					t.Errorf("%s waits without a cure: %s", m, w)
				}
			}
			if diff := cmp.Diff(c.waiting, said, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			want := Admission{Start: c.start, Waiting: got.Waiting, Stopped: c.stopped, Done: c.done}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestATraceIsThatOfOneAttempt(t *testing.T) {
	var k Key
	s := armed()
	first := k.Trace(s)
	if len(first) != ipxe.TraceLen || first != k.Trace(s) {
		t.Errorf("traces %q and %q of one attempt", first, k.Trace(s))
	}
	boots := *s.Intent
	boots.Boots++
	boots.Fence++
	if got := k.Trace(State{Status: s.Status, Intent: &boots}); got != first {
		t.Errorf("trace %q after a restart, %q before: it is the same attempt", got, first)
	}
	next := s
	next.Status.Attempt++
	if k.Trace(next) == first {
		t.Error("the next attempt has the same trace")
	}
	if got := k.Trace(State{}); got != "" {
		t.Errorf("trace %q of nothing", got)
	}
	if strings.Contains(k.Nonce(s.Intent, 0), first) {
		t.Error("the trace gives away a part of the nonce")
	}
}

// What a key derives is the same whatever was derived before, by it or by another, at
// the same time too: HMACs are used again.
func TestWhatAKeyDerivesDependsOnItAlone(t *testing.T) {
	want := func(k Key, text string) string {
		mac := hmac.New(sha256.New, k[:])
		mac.Write([]byte(text))
		return hex.EncodeToString(mac.Sum(nil)[:16])
	}
	long := strings.Repeat("x", 1000)
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			for j := range 200 {
				k := Key{byte(i + j%2)}
				if got, want := k.sum("a", "", "bc"), want(k, "1:a0:2:bc"); got != want {
					t.Errorf("%q, want %q", got, want)
				}
				if got, want := k.sum(long), want(k, "1000:"+long); got != want {
					t.Errorf("%q of a long text, want %q", got, want)
				}
			}
		})
	}
	work.Wait()
}

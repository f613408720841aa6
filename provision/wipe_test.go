package provision

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"recast/bmc"
	"recast/inventory"
	"recast/ipxe"
)

func TestWipeDecisions(t *testing.T) {
	confirmed := inventory.DiskID{Name: "/dev/sda", WWN: "0x5", Serial: "S1", Size: 64 << 20, LogicalBlockSize: 512}
	seen := inventory.DiskFacts{Name: "/dev/sda", WWN: "0x5", Serial: "S1", Size: 64 << 20, LogicalBlockSize: 512, Holds: "gpt"}
	nameless := func(q *diskQuestion, f *inventory.Facts) {
		d := &q.Intent.Consent.Disk
		d.WWN, d.Serial, d.ByPath = "", "", "pci-1"
		f.Disks[0].WWN, f.Disks[0].Serial, f.Disks[0].ByPath = "", "", "pci-1"
	}
	for _, c := range []struct {
		name   string
		change func(q *diskQuestion, f *inventory.Facts)
		want   DiskVerdict
		reason string
	}{
		{"the confirmed disk", func(*diskQuestion, *inventory.Facts) {}, DiskWipe, ""},
		{"it has another name now", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].Name = "/dev/sdb" }, DiskWipe, ""},
		{"it holds something else now", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].Holds = "" }, DiskWipe, ""},
		{"beside others", func(_ *diskQuestion, f *inventory.Facts) {
			f.Disks = append(f.Disks, inventory.DiskFacts{Name: "/dev/sdb", Serial: "S2", Size: 64 << 20, LogicalBlockSize: 512})
		}, DiskWipe, ""},
		{"a removable one", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].Removable = true }, DiskWipe, ""},
		{"another serial", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].Serial = "S2" }, DiskRefuse, `is not here: WWN "0x5" serial "S1", 67108864 bytes in blocks of 512; /dev/sda is WWN "0x5" serial "S2"`},
		{"another WWN", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].WWN = "0x6" }, DiskRefuse, "is not here"},
		{"a WWN that is gone", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].WWN = "" }, DiskRefuse, "is not here"},
		{"another size", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].Size++ }, DiskRefuse, "67108865 bytes"},
		{"another block size", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].LogicalBlockSize = 4096 }, DiskRefuse, "blocks of 4096"},
		{"no disk", func(_ *diskQuestion, f *inventory.Facts) { f.Disks = nil }, DiskRefuse, "is not here"},
		{"two that say the same", func(_ *diskQuestion, f *inventory.Facts) {
			f.Disks = append(f.Disks, f.Disks[0])
			f.Disks[1].Name = "/dev/sdb"
		}, DiskRefuse, "/dev/sda and /dev/sdb both say"},
		{"read-only", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].ReadOnly = true }, DiskRefuse, "read-only"},
		{"in use", func(_ *diskQuestion, f *inventory.Facts) { f.Disks[0].InUse = true }, DiskRefuse, "in use"},
		{"protected since", func(q *diskQuestion, _ *inventory.Facts) { q.Machine.Protected = true }, DiskRefuse, "protected"},
		{"protected when it was erased already", func(q *diskQuestion, _ *inventory.Facts) {
			q.Machine.Protected = true
			q.Intent.Write = &WriteState{Disk: confirmed, Attempt: 1, Erased: true}
		}, DiskWipe, ""},
		{"nameless, as it was seen", func(q *diskQuestion, f *inventory.Facts) { nameless(q, f) }, DiskWipe, ""},
		{"nameless, and it holds something else now", func(q *diskQuestion, f *inventory.Facts) {
			nameless(q, f)
			f.Disks[0].Holds = "ntfs"
		}, DiskRefuse, "disk at pci-1 has no serial and is holding ntfs now, confirmed was one holding gpt"},
		{"nameless, and erased in part already", func(q *diskQuestion, f *inventory.Facts) {
			nameless(q, f)
			f.Disks[0].Holds = "gpt, only its backup table is left"
			q.Intent.Earlier = &q.Intent.Consent.Disk
		}, DiskWipe, ""},
		{"nothing confirmed", func(q *diskQuestion, _ *inventory.Facts) { q.Intent.Consent = nil }, DiskRefuse, "no disk was confirmed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := diskQuestion{Machine: &inventory.Machine{Name: "m1"}, Attempt: 1,
				Intent: &Intent{Machine: "m1", Purpose: PurposeWipe, Consent: &Consent{Disk: confirmed, Holds: "gpt"}}}
			f := inventory.Facts{Disks: []inventory.DiskFacts{seen}}
			c.change(&q, &f)
			d := decideWipe(q, f)
			if d.Verdict != c.want || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("%s (%s), want %s (%s)", d.Verdict, d.Reason, c.want, c.reason)
			}
			if d.Verdict == DiskWipe && !sameDisk(d.Disk, q.Intent.Consent.Disk) {
				t.Errorf("it may wipe %+v", d.Disk)
			}
		})
	}
}

func TestADiskIsNamedByWhatItSaysOfItself(t *testing.T) {
	disks := []inventory.DiskFacts{
		{Name: "/dev/sda", Serial: "S1", WWN: "0x1", ByPath: "pci-1", Size: 1},
		{Name: "/dev/sdb", Serial: "S1", WWN: "0x2", ByPath: "pci-2", Size: 1},
		{Name: "/dev/sdc", WWN: "0x3", ByPath: "pci-3", Size: 1},
		{Name: "/dev/sdd", ByPath: "pci-4", Size: 1, Holds: "ntfs"},
		{Name: "/dev/sde", Serial: "S5", Size: 1},
		{Name: "/dev/sdf", Size: 1},
	}
	for word, want := range map[string]string{"S5": "/dev/sde", "0x1": "/dev/sda", "0x3": "/dev/sdc", "pci-4": "/dev/sdd",
		"S1": "2 disks are", "pci-1": "no disk is", "pci-3": "no disk is", "s5": "no disk is", "/dev/sde": "no disk is", "": "no disk is"} {
		d, err := namedDisk(disks, word)
		if err == nil && d.Name != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v; want %s", word, d.Name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", word, err)
		}
	}
	if _, err := namedDisk(disks, "S9"); !strings.Contains(err.Error(), "disk serial S5, /dev/sde, 1 B, blank") || !strings.Contains(err.Error(), "holding ntfs") {
		t.Errorf("it does not say which disks there are: %v", err)
	}
}

// deployed brings m1 to active.
func (s *site) deployed() {
	s.t.Helper()
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	token, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil {
		s.t.Fatal(err)
	}
	r := inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: o.Job.Attempt, Step: inventory.AgentDone, Erased: true, ReadBack: s.image}
	volume, err := s.ConfigVolume(s.t.Context(), token)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Report(s.t.Context(), token, r); err != nil {
		s.t.Fatal(err)
	}
	token, said := reporter(s.t, volume)
	said.BootID = "os"
	if err := s.Booted(s.t.Context(), token, said); err != nil {
		s.t.Fatal(err)
	}
	s.await("m1", Active, StepNone)
}

func TestWipeLeavesAMachineOffBlankAndOutOfItsRollout(t *testing.T) {
	s := newSite(t, 1)
	s.deployed()
	if _, err := s.Wipe(t.Context(), "m1", "ann", "D1", false); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Cleaning, StepBooting)
	token, o, err := s.boot(1, "b2", testUUID(1))
	if err != nil || o.Kind != inventory.OrderWipe {
		t.Fatalf("order %+v, %v", o, err)
	}
	if j := o.Job; j.Kind != inventory.JobWipe || j.Disk.Serial != "D1" || j.Disk.Size != 64<<20 || j.Quick || j.Image.Digest != "" || j.Config != nil || j.EFI != nil || j.Fence != 2 {
		t.Errorf("job %+v", j)
	}
	if _, err := s.ConfigVolume(t.Context(), token); err == nil {
		t.Error("a wipe reads the configuration")
	}
	r := inventory.Report{BootID: "b2", Fence: o.Job.Fence, Attempt: 1, Step: inventory.AgentWriting, Erased: true, Total: 64 << 20}
	if a, err := s.Report(t.Context(), token, r); err != nil || a.Abort || a.LeaseSeconds <= 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	s.restart()
	r.Step, r.Blank = inventory.AgentDone, 64<<20
	if a, err := s.Report(t.Context(), token, r); err != nil || a.Abort {
		t.Fatalf("%+v, %v", a, err)
	}
	if o, err := s.Order(t.Context(), token); err != nil || o.Kind != inventory.OrderPowerOff {
		t.Errorf("afterwards it shall %+v, %v", o, err)
	}
	v := s.await("m1", Available, StepNone)
	if s.bmcs["10.9.0.1"].Powered() || v.Status.Power != "off" {
		t.Errorf("it is on; as seen: %s", v.Status.Power)
	}
	if e := v.Status.Evidence; e.Level != inventory.E3 || e.Generation != "" || !strings.Contains(e.Detail, "blank: every byte of disk serial D1, 64.0 MiB") {
		t.Errorf("evidence %+v", e)
	}
	if v.Status.Running != "" || v.Status.Disk != nil || v.Status.LastError != "" || v.Sync != OutOfSync || !strings.Contains(v.SyncWhy, "wiped") {
		t.Errorf("runs %q on %v, %s (%s), %q", v.Status.Running, v.Status.Disk, v.Sync, v.SyncWhy, v.Status.LastError)
	}
	log, err := s.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last := log[len(log)-1]; last.Who != "ann" || last.What != "wipe" || last.Machine != "m1" || !strings.Contains(last.Detail, "disk serial D1, /dev/sda, 67.1 MB (64.0 MiB), holding generation") || !strings.HasSuffix(last.Detail, "every byte") {
		t.Errorf("audit %+v", last)
	}
	// The rollout that is in force has nothing to say, not even after a restart.
	s.restart()
	for range 3 {
		s.schedule(t.Context())
	}
	if v := s.await("m1", Available, StepNone); v.Status.Attempt != 1 {
		t.Errorf("%+v", v.Status)
	}
	if err := s.Retry(t.Context(), "m1", "ann"); err == nil || !strings.Contains(err.Error(), "recast plan") {
		t.Errorf("retry: %v", err)
	}
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml(true))}}, nil)
	if err != nil || len(p.Entries) != 1 || p.Entries[0].Kind != EntryWrite || p.Entries[0].NeedsErase || p.Entries[0].Blocked != "" || p.Entries[0].Holds != "" {
		t.Fatalf("the next plan is %+v, %v", p.Entries, err)
	}
	if _, err := s.Apply(t.Context(), p.Digest, "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
}

func TestAMachineOfARunningRolloutIsNotDeployedAfterItsWipe(t *testing.T) {
	s := newSite(t, 2)
	s.apply(strings.Replace(s.yaml(true), "maxUnavailable: 100%", "canary: 1, maxUnavailable: 1", 1), "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	// m2 waits for its canary. It is looked at, and wiped.
	if err := s.Look(t.Context(), "m2", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m2", Inspecting, StepBooting)
	if _, _, err := s.boot(2, "b1", testUUID(2)); err != nil {
		t.Fatal(err)
	}
	s.await("m2", Available, StepNone)
	if _, err := s.Wipe(t.Context(), "m2", "ann", "D2", true); err != nil {
		t.Fatal(err)
	}
	s.await("m2", Cleaning, StepBooting)
	token, o, err := s.boot(2, "b2", testUUID(2))
	if err != nil || o.Kind != inventory.OrderWipe || !o.Job.Quick {
		t.Fatalf("order %+v, %v", o, err)
	}
	if _, err := s.Report(t.Context(), token, inventory.Report{BootID: "b2", Fence: o.Job.Fence, Attempt: 1, Step: inventory.AgentDone, Erased: true, Blank: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	s.await("m2", Available, StepNone)
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil { // there is room now
		t.Fatal(err)
	}
	for range 3 {
		s.schedule(t.Context())
	}
	if v, _ := s.View("m2"); v.Status.Phase != Available || v.Waiting != "" {
		t.Errorf("m2 is %s/%s, waits for %q", v.Status.Phase, v.Status.Step, v.Waiting)
	}
}

func TestAWipeIsRefusedWithItsReason(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	refused := func(word, want string) {
		t.Helper()
		before := s.machine("m1").snapshot()
		log, err := s.Audit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Wipe(t.Context(), "m1", "ann", word, false); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", word, err, want)
		}
		after := s.machine("m1").snapshot()
		if now, err := s.Audit(t.Context()); err != nil || len(now) != len(log) || after.Status.Phase != before.Status.Phase || after.Intent.Purpose != before.Intent.Purpose {
			t.Errorf("%q: a refused wipe left %d audit entries, %s, %+v", word, len(now)-len(log), after.Status.Phase, after.Intent)
		}
	}
	if _, err := s.Wipe(t.Context(), "m9", "ann", "D1", false); err == nil || !strings.Contains(err.Error(), "no such machine") {
		t.Errorf("an undeclared machine: %v", err)
	}
	s.await("m1", Deploying, StepBooting)
	refused("D1", "under way (booting); recast abort m1")
	if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Available, StepNone)
	refused("D1", "no inventory has seen its disks yet; recast inspect m1")
	if err := s.Look(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Inspecting, StepBooting)
	if _, _, err := s.boot(1, "b1", testUUID(1)); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Available, StepNone)
	refused("D2", `no disk is "D2"; the last inventory saw disk serial D1, /dev/sda, 67.1 MB (64.0 MiB), holding data`)
	refused("", "no disk is")
	if err := s.Freeze(t.Context(), "ann", "a fair"); err != nil {
		t.Fatal(err)
	}
	refused("D1", "frozen: a fair; recast unfreeze")
	if err := errors.Join(s.Unfreeze(t.Context(), "ann"), s.Hold(t.Context(), "m1", "bob", "memory test", 0)); err != nil {
		t.Fatal(err)
	}
	refused("D1", "held by bob: memory test; recast release m1")
	if err := s.Release(t.Context(), "m1", "bob"); err != nil {
		t.Fatal(err)
	}
	s.apply(strings.Replace(s.yaml(true), "spec:\n  nics", "spec:\n  protected: true\n  nics", 1))
	refused("D1", "protected")
}

// A disk that changed between the confirmation and the ramdisk's inventory is
// not wiped, and its machine is what it was.
func TestAnotherDiskThanTheConfirmedIsNotWiped(t *testing.T) {
	s := newSite(t, 1)
	s.deployed()
	if _, err := s.Wipe(t.Context(), "m1", "ann", "D1", false); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Cleaning, StepBooting)
	reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b2"}, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	facts := testFacts(1, testUUID(1))
	facts.Disks[0].Size += 512
	o, err := s.Inventory(t.Context(), reply.Token, facts)
	if err != nil || o.Kind != inventory.OrderLocal {
		t.Fatalf("order %+v, %v", o, err)
	}
	st := s.machine("m1").snapshot()
	if st.Intent.Write != nil || st.Status.Phase != Active || st.Status.Running == "" || !strings.Contains(st.Status.LastError, "not wiped: the disk to be wiped is not here") {
		t.Errorf("%s, runs %q, %q, write intent %+v", st.Status.Phase, st.Status.Running.Short(), st.Status.LastError, st.Intent.Write)
	}
}

// A wipe is believed only when every byte was read back as zero.
func TestAWipeThatReadTooLittleBackIsAFailedWipe(t *testing.T) {
	s := newSite(t, 1)
	s.deployed()
	if _, err := s.Wipe(t.Context(), "m1", "ann", "D1", false); err != nil {
		t.Fatal(err)
	}
	for attempt := 1; attempt <= 2; attempt++ {
		s.await("m1", Cleaning, StepBooting)
		boot := fmt.Sprint("b", attempt+1)
		token, o, err := s.boot(1, boot, testUUID(1))
		if err != nil || o.Kind != inventory.OrderWipe || o.Job.Attempt != attempt {
			t.Fatalf("order %+v, %v", o, err)
		}
		r := inventory.Report{BootID: "b" + string(rune('1'+attempt)), Fence: o.Job.Fence, Attempt: attempt, Step: inventory.AgentDone, Erased: true,
			Blank: 64<<20 - 512, ReadBack: s.image}
		if _, err := s.Report(t.Context(), token, r); err != nil {
			t.Fatal(err)
		}
	}
	v := s.await("m1", Failed, StepNone)
	if !strings.Contains(v.Status.LastError, "67108352 bytes of the disk read back as zeros, not 67108864") || v.Status.NextAction == "" || v.Status.Running != "" {
		t.Errorf("%q, next %q, runs %q", v.Status.LastError, v.Status.NextAction, v.Status.Running)
	}
}

// What booted for one purpose has no word under another, even where fence, boots
// and boot id are the same.
func TestATokenSpeaksForOnePurpose(t *testing.T) {
	key := Key{1}
	in := Intent{Machine: "m1", Epoch: "e", Fence: 3, Boots: 1, Claim: &ClaimState{BootID: "b"}}
	tokens, nonces := map[string]Purpose{}, map[string]Purpose{}
	for _, p := range []Purpose{PurposeDeploy, PurposeInspect, PurposeAdopt, PurposeWipe} {
		in.Purpose = p
		token, nonce := key.AgentToken(&in), key.Nonce(&in, 1)
		if tokens[token] != "" || nonces[nonce] != "" {
			t.Errorf("%s shares a word with %s%s", p, tokens[token], nonces[nonce])
		}
		tokens[token], nonces[nonce] = p, p
	}
}

// A boot of the deployment before has neither a job nor a report to give while a
// wipe begins.
func TestTheBootBeforeAWipeIsRefused(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true))
	s.await("m1", Deploying, StepBooting)
	token, o, err := s.boot(1, "b1", testUUID(1)) // not named for an erase: it waits for a word
	if err != nil || o.Kind != inventory.OrderLocal {
		t.Fatalf("order %+v, %v", o, err)
	}
	s.bmcs["10.9.0.1"].SetFault(bmc.FaultBusy) // so that it is not off yet
	if _, err := s.Wipe(t.Context(), "m1", "ann", "D1", false); err != nil {
		t.Fatal(err)
	}
	var no *RefusedError
	if o, err := s.Order(t.Context(), token); !errors.As(err, &no) {
		t.Errorf("order %+v, %v", o, err)
	}
	if _, err := s.Report(t.Context(), token, inventory.Report{BootID: "b1", Fence: 1, Attempt: 1, Step: inventory.AgentDone, ReadBack: s.image}); !errors.As(err, &no) {
		t.Errorf("report: %v", err)
	}
	if spec, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)}); err != nil || spec.Kind != ipxe.SpecLocal {
		t.Errorf("it boots %+v, %v", spec, err)
	}
}

// A wiped disk says nothing of the one beside it, which may hold the system.
func TestAWipeOfOneDiskDoesNotCallTheMachineBlank(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true))
	facts := testFacts(1, testUUID(1))
	facts.Disks = append(facts.Disks, inventory.DiskFacts{Name: "/dev/sdb", Serial: "D2", Size: 32 << 20, LogicalBlockSize: 512, Holds: "ext4"})
	inspect := func(boot string) (string, inventory.Order) {
		t.Helper()
		reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: boot}, testAddr(1))
		if err != nil {
			t.Fatal(err)
		}
		o, err := s.Inventory(t.Context(), reply.Token, facts)
		if err != nil {
			t.Fatal(err)
		}
		return reply.Token, o
	}
	s.await("m1", Deploying, StepBooting)
	inspect("b1") // the hints match both disks
	s.await("m1", Failed, StepNone)
	if _, err := s.Wipe(t.Context(), "m1", "ann", "D2", false); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Cleaning, StepBooting)
	token, o := inspect("b2")
	if o.Kind != inventory.OrderWipe {
		t.Fatalf("order %+v", o)
	}
	if _, err := s.Report(t.Context(), token, inventory.Report{BootID: "b2", Fence: o.Job.Fence, Attempt: 1, Step: inventory.AgentDone, Erased: true, Blank: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	v := s.await("m1", Available, StepNone)
	if v.Status.Evidence.Level != inventory.E0 || strings.Contains(v.SyncWhy, "wiped") {
		t.Errorf("%+v, %s", v.Status.Evidence, v.SyncWhy)
	}
}

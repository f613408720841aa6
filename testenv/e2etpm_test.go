package testenv

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestTPMOnRealFirmwareVouchesForEveryBoot: OVMF measures what starts the ramdisk into a
// TPM, which enrols, and vouches for the write and for a boot through the gate; the log
// of the firmware leads to the values, and both boots have the same chain.
func TestTPMOnRealFirmwareVouchesForEveryBoot(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	s := newStory(t, storySetup{Takes: 15 * time.Minute, Machines: []RackMachine{
		{Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, NetworkFirst: true, TPM: true}}})
	img := s.image("tpm")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("tpm"), Immutable: "[1, 2]", MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: repair}\n"})
	begun := time.Now()
	p := s.apply("--erase", "uefi")
	s.active(p, 8*time.Minute)
	vouched := func(n int) storyView {
		s.until("the TPM vouches", 5*time.Minute, func() bool {
			return s.count("uefi", begun, "its TPM vouches for it in quote") >= n && s.count("uefi", begun, "the system reports generation") >= n
		})
		return s.await("uefi", "active", time.Minute, func(v storyView) bool { return v.runs(p.Entries[0]) })
	}
	v := vouched(1)
	if e := v.Status.Evidence; e.Level != "measured" || len(v.Status.Findings) > 0 {
		t.Errorf("after the write: %v, evidence %+v", v, e)
	}
	first := v.Status.TPM.Quote
	if first.Log == "" {
		t.Error("there is no log of the firmware")
	}
	s.recast("power", "off", "uefi")
	s.await("uefi", "off", time.Minute, func(storyView) bool { return !s.Node("uefi").Powered() })
	s.recast("power", "on", "uefi")
	v = vouched(2)
	if e := v.Status.Evidence; e.Level != "measured" || !strings.Contains(e.Detail, "the gate read") || len(v.Status.Findings) > 0 {
		t.Errorf("after a boot through the gate: %v, evidence %+v", v, e)
	}
	if v.Status.TPM.Quote.Nonce == first.Nonce {
		t.Error("it is the quote of the boot before")
	}
	for i, have := range v.Status.TPM.Quote.PCRs {
		t.Logf("PCR %d: %s, then %s", have.Index, first.PCRs[i].Value.Short(), have.Value.Short())
	}
}

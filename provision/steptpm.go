package provision

import (
	"time"

	"recast/inventory"
	"recast/tpm"
)

// TPMEnrolled: the machine's TPM has proved to hold both keys.
type TPMEnrolled struct {
	EK, Cert []byte
	AK       inventory.TPMKey
}

// TPMForeign: another TPM than the one on record was shown.
type TPMForeign struct {
	EK []byte
	Suspected
}

// TPMBack: the TPM on record was shown again, after another one.
type TPMBack struct{}

func (TPMEnrolled) event() {}
func (TPMBack) event()     {}

// tpmPrefix begins what is found of a TPM.
const tpmPrefix = "tpm: "

func (t *transition) tpmEnrolled(ev TPMEnrolled) {
	rec := TPM{EK: ev.EK, Cert: ev.Cert, AK: ev.AK.Public, Blob: ev.AK.Blob, Since: t.now}
	if old := t.Status.TPM; old.enrolled() {
		// The same TPM, which was cleared: what starts the machine is what it was.
		rec.Chain, rec.Quote = old.Chain, old.Quote
		t.line("seen", "its TPM %s was cleared, and has enrolled again", rec.ID().Short())
	} else {
		t.line("seen", "its TPM %s has enrolled", rec.ID().Short())
	}
	t.Status.TPM = &rec
}

func (t *transition) tpmForeign(ev TPMForeign) {
	if t.Status.TPM != nil {
		rec := *t.Status.TPM
		rec.Other = ev.EK
		t.Status.TPM = &rec
	}
	if _, seen := t.gate(); seen != nil {
		seen.Deadline = time.Time{} // nothing more comes of this boot
	}
	t.suspected(ev.Suspected)
}

func (t *transition) tpmBack() {
	if t.Status.TPM != nil {
		rec := *t.Status.TPM
		rec.Other = nil
		t.Status.TPM = &rec
		t.line("seen", "its TPM %s is there again", rec.ID().Short())
	}
}

// measured adds to what was just read back from the disk what the machine's TPM says of
// who has read it.
func (t *transition) measured(m *Measurement) {
	if m == nil {
		return
	}
	st := &t.Status
	st.Findings = dropFindings(st.Findings, tpmPrefix)
	if m.Err != "" {
		t.finding(tpmPrefix + "it did not vouch for the last boot: " + m.Err)
		return
	}
	rec, quoted := *st.TPM, m.Quoted
	chain := quoted.chain()
	rec.Quote = &quoted
	st.TPM = &rec
	if text := tpm.Changed(rec.Chain, chain); text != "" {
		t.finding(tpmPrefix + "another boot chain than on record started the ramdisk: " + text +
			"; if that is a new firmware, loader or ramdisk: recast trust " + st.Machine)
		return
	}
	if !m.Unified {
		st.Evidence.Detail += "; its TPM signed it in quote " + quoted.Digest.Short() + ", which says nothing of the ramdisk's initrd"
		return
	}
	if m.Altered != "" {
		t.finding(tpmPrefix + m.Altered)
		return
	}
	if rec.Chain == nil {
		t.line("seen", "its boot chain, as its TPM measured it, is on record from now on")
	}
	rec.Chain = chain // what is not on record yet is from now on
	if st.Evidence.Level < inventory.E4 {
		st.Evidence.Level = inventory.E4
	}
	st.Evidence.Quote = quoted.Digest
	st.Evidence.Detail += "; its TPM signed it in quote " + quoted.Digest.Short()
	t.line("seen", "its TPM vouches for it in quote %s", quoted.Digest.Short())
}

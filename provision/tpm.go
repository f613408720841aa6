package provision

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"recast/image"
	"recast/inventory"
	"recast/tpm"
)

// TPM is what is on record of a machine's TPM. It is believed as it first showed
// itself: no certificate is verified, no boot chain known before.
type TPM struct {
	// EK is the public part of its endorsement key, PKIX, and Cert its manufacturer's
	// certificate of that, where the TPM holds one.
	EK   []byte `json:"ek"`
	Cert []byte `json:"cert,omitempty"`
	// AK is the attestation key that it proved to hold, TPMT_PUBLIC, and Blob what it
	// loads it from; none: it has yet to.
	AK    []byte    `json:"ak,omitempty"`
	Blob  []byte    `json:"blob,omitempty"`
	Since time.Time `json:"since"` // of AK
	// Chain is what starts the ramdisk, as the first quote told, or as somebody trusted it.
	Chain []inventory.PCR `json:"chain,omitempty"`
	// Quote is the last that was right.
	Quote *Quoted `json:"quote,omitempty"`
	// Other is the endorsement key of another TPM that was shown in its place, until this
	// one is again: it is what a person would trust by a word that is about now.
	Other []byte `json:"other,omitempty"`
}

// Quoted is a quote that was verified, without the firmware's log of it.
type Quoted struct {
	At         time.Time        `json:"at"`
	Digest     inventory.Digest `json:"digest"` // of Quote
	Generation inventory.Digest `json:"generation"`
	Nonce      string           `json:"nonce"`
	Quote      []byte           `json:"quote"`
	Signature  []byte           `json:"signature"`
	PCRs       []inventory.PCR  `json:"pcrs"`
	// Initrd is what the kernel got of one; "" it is not proved which arguments it had.
	Initrd inventory.Digest `json:"initrd,omitempty"`
	// Log is the digest of the firmware's log, which led to PCRs; "" it keeps none.
	Log inventory.Digest `json:"log,omitempty"`
}

// chain is what it says of the boot chain.
func (q *Quoted) chain() []inventory.PCR { return tpm.ChainOf(q.PCRs, q.Initrd) }

// ID names the TPM: the digest of its endorsement key.
func (t *TPM) ID() inventory.Digest { return inventory.DigestOf(t.EK) }

// Measurement is what came of asking a TPM for its word on a boot.
type Measurement struct {
	Quoted
	Unified bool   // the quote holds all of the ramdisk
	Err     string // why it is not believed; "" it is
	// Altered is why it does not prove that the kernel had the arguments which the server
	// gave; "" it does.
	Altered string
}

// Bounds of what a machine may make us keep of its TPM.
const (
	maxTPMKey  = 2 << 10
	maxTPMCert = 8 << 10
	maxTPMBlob = 8 << 10
)

// TPM enrols the TPM of a machine's present boot; see inventory.TPMHello. Another one
// than on record holds the machine: with its board, its disks may have been changed too.
func (e *Engine) TPM(ctx context.Context, token string, h inventory.TPMHello) (inventory.TPMReply, error) {
	m, gate := e.gateAgent(token)
	if !gate {
		var err error
		if m, err = e.agent(token); err != nil {
			return inventory.TPMReply{}, err
		}
	}
	defer m.mu.Unlock()
	if why := badHello(h); why != "" {
		return inventory.TPMReply{Refused: why}, nil
	}
	rec := m.state.Status.TPM
	if rec != nil && !bytes.Equal(rec.EK, h.EK) {
		ev := TPMForeign{EK: h.EK}
		ev.Reason, ev.Cure = foreignTPM(m.name, rec, h.EK)
		return inventory.TPMReply{}, errors.Join(refused("tpm: %s", ev.Reason), e.handleLocked(ctx, m, ev))
	}
	if h.AK == nil {
		if rec == nil {
			return inventory.TPMReply{}, nil
		}
		if rec.Other != nil {
			if err := e.handleLocked(ctx, m, TPMBack{}); err != nil {
				return inventory.TPMReply{}, err
			}
		}
		return inventory.TPMReply{Blob: rec.Blob}, nil
	}
	answer := e.key.tpmAnswer(e.Store.Epoch(), m.name, bootOf(m.state, gate), h)
	if h.Answer == nil {
		credential, secret, err := tpm.Challenge(h.EK, *h.AK, answer)
		if err != nil {
			return inventory.TPMReply{Refused: clip(err.Error(), maxWord)}, nil
		}
		return inventory.TPMReply{Credential: credential, Secret: secret}, nil
	}
	if !sameToken(string(h.Answer), string(answer[:])) {
		return inventory.TPMReply{Refused: "that is not the answer to its challenge: its attestation key and its endorsement key are not of one TPM"}, nil
	}
	if err := e.handleLocked(ctx, m, TPMEnrolled{EK: h.EK, Cert: h.Cert, AK: *h.AK}); err != nil {
		return inventory.TPMReply{}, err
	}
	return inventory.TPMReply{Enrolled: true}, nil
}

func badHello(h inventory.TPMHello) string {
	if len(h.EK) > maxTPMKey || len(h.Cert) > maxTPMCert || h.AK != nil && (len(h.AK.Blob) > maxTPMBlob || len(h.AK.Public) > maxTPMKey) {
		return "its keys are larger than those of any TPM"
	}
	_, err := tpm.ParseEK(h.EK)
	if err == nil && h.Cert != nil {
		err = tpm.CheckCertificate(h.Cert, h.EK)
	}
	if err != nil {
		return clip(err.Error(), maxWord)
	}
	return ""
}

func foreignTPM(machine string, rec *TPM, ek []byte) (why, cure string) {
	return fmt.Sprintf("%sits TPM has the endorsement key %s, and %s is on record: its board was changed, or this is another machine", tpmPrefix,
			inventory.DigestOf(ek).Short(), rec.ID().Short()),
		fmt.Sprintf("find out which; if its board was changed: recast trust %s", machine)
}

// bootOf is the id of the boot that has the token.
func bootOf(s State, gate bool) string {
	if gate {
		return s.Intent.Gate.Claim.BootID
	}
	return s.Intent.Claim.BootID
}

// tpmAnswer is what a challenge about these keys hides. Derived, so that nothing has to be
// kept until it comes back; of all that goes on record by it, so that no part can be
// exchanged for another then.
func (k Key) tpmAnswer(epoch, machine, boot string, h inventory.TPMHello) (answer [32]byte) {
	copy(answer[:], k.sum("tpm", epoch, machine, boot, string(h.EK), string(h.Cert), string(h.AK.Public), string(h.AK.Blob)))
	return answer
}

// writeQuote is the nonce for the TPM's word on a write, gateQuote for that on a boot
// through the gate; "" it is not asked. None serves twice: each job has its own.
func (k Key) writeQuote(s State) string {
	if in := s.Intent; s.Status.TPM.enrolled() && in.Purpose == PurposeDeploy {
		return k.sum("quote", "write", in.Epoch, in.Machine, strconv.FormatInt(in.Fence, 10), strconv.Itoa(in.Boots), strconv.Itoa(s.Status.Attempt), in.Claim.BootID)
	}
	return ""
}

func (k Key) gateQuote(epoch string, s State) string {
	if g := s.Intent.Gate; s.Status.TPM.enrolled() {
		return k.sum("quote", "gate", epoch, s.Status.Machine, g.Write, strconv.Itoa(g.Boots), strconv.Itoa(g.Jobs), g.Claim.BootID)
	}
	return ""
}

func (t *TPM) enrolled() bool { return t != nil && t.AK != nil }

// The arguments by which a machine claims, and, last where a TPM measures the ramdisk, that
// by which all before it are known again.
const (
	nonceArg = "recast.nonce="
	sealArg  = "recast.seal="
)

// seal is what only this server makes of a kernel's arguments, those of one machine and, by
// the claim's nonce among them, of one boot. What was given is judged by it, and nothing has
// to be kept, or to be the same still, until that boot reports.
func (k Key) seal(epoch, machine, args string) string {
	return k.sum("arguments", epoch, machine, args)
}

// altered says why a kernel was not started as its machine was told to for the boot that
// claimed by a nonce; "" it was. text is all that it was given: from iPXE with the name of
// the file before it, from shim without.
func (k Key) altered(epoch, machine, claim, text string) string {
	args := text
	if file, rest, _ := strings.Cut(text, " "); isUnified(file) {
		args = rest
	}
	given, seal, _ := strings.Cut(args, " "+sealArg)
	if sameToken(seal, k.seal(epoch, machine, given)) && slices.Contains(strings.Fields(given), nonceArg+claim) {
		return ""
	}
	var strange []string
	for _, w := range strings.Fields(args) {
		if !strings.HasPrefix(w, "recast.") && !strings.HasPrefix(w, "console=") && !strings.HasPrefix(w, "panic=") {
			strange = append(strange, w)
		}
	}
	if strange == nil {
		return "its kernel was started with other arguments than the server gave it for that boot"
	}
	return clip("its kernel was started with arguments that the server did not give it: "+strings.Join(strange, " "), maxWord)
}

func isUnified(file string) bool {
	kernel, initrd := image.RamdiskPart(file)
	return kernel && initrd
}

// measured judges the quote of a job that has ended, of the boot that claimed by a nonce;
// nil: none was asked for.
func (e *Engine) measured(s State, r inventory.Report, claim, nonce string, generation inventory.Digest) *Measurement {
	if nonce == "" || r.Step != inventory.AgentDone {
		return nil
	}
	if r.Quote == nil {
		return &Measurement{Err: "its ramdisk gave no quote"}
	}
	if r.Quote.Error != "" {
		return &Measurement{Err: clip(r.Quote.Error, maxWord)}
	}
	q := *r.Quote
	if err := tpm.Verify(q, tpm.Expected{AK: s.Status.TPM.AK, Nonce: []byte(nonce), Generation: generation}); err != nil {
		return &Measurement{Err: clip(err.Error(), 2*maxWord)}
	}
	m := &Measurement{Unified: q.Unified, Quoted: Quoted{At: e.Now(), Digest: inventory.DigestOf(q.Quote), Generation: generation, Nonce: nonce,
		Quote: q.Quote, Signature: q.Signature, PCRs: q.PCRs}}
	if len(q.Log) > 0 {
		m.Log = inventory.DigestOf(q.Log)
	}
	if initrd, err := tpm.Initrd(q); err != nil {
		m.Altered = clip(err.Error(), maxWord)
	} else if m.Altered = e.key.altered(e.Store.Epoch(), s.Status.Machine, claim, q.Arguments); m.Altered == "" {
		m.Initrd = initrd
	}
	return m
}

// noTPM says why a machine cannot give what its definition wants to be measured; none:
// it can, or needs not.
func noTPM(name string, st Status, gen inventory.Generation) Wait {
	if gen.Resolved.Evidence != inventory.E4 {
		return Wait{}
	}
	want := "its definition wants evidence measured by a TPM, and "
	less := "or give its group a definition with evidence of read-back, and apply"
	switch f := st.Facts; {
	case f == nil && st.TPM.enrolled():
	case f == nil:
		return Wait{want + "nothing is known of one", fmt.Sprintf("once it is declared and applied: recast inspect %s, and apply again", name)}
	case f.Boot.Mode == "bios":
		return Wait{want + "it boots by BIOS, which measures neither kernel nor ramdisk", fmt.Sprintf("switch it to UEFI in the firmware's setup and recast inspect %s, %s", name, less)}
	case f.TPM == "":
		return Wait{want + "its ramdisk saw none", fmt.Sprintf("switch it on in the firmware's setup and recast inspect %s, %s", name, less)}
	case f.TPM != "2":
		return Wait{want + "it has a TPM " + f.TPM, "want a TPM 2.0, " + less}
	case f.TPMError != "":
		return Wait{want + "its own cannot be used: " + f.TPMError, fmt.Sprintf("mend that and recast inspect %s, %s", name, less)}
	}
	return Wait{}
}

// noUnified says why a machine's TPM would not measure all of its ramdisk.
func (e *Engine) noUnified(m *inventory.Machine) Wait {
	const why = "its definition wants evidence measured by a TPM, and there is no "
	switch files := e.Ramdisk(cmp.Or(m.Arch, inventory.AMD64)); {
	case m.SecureBoot && files.Unified == "":
		return Wait{why + "signed ramdisk, which one measures whole", "recast ramdisk export, sign it, recast ramdisk import"}
	case !m.SecureBoot && files.Unsigned == "":
		return Wait{why + "unified ramdisk, which one measures whole", "apt-get install systemd-boot-efi, and recast ramdisk build"}
	}
	return Wait{}
}

// Trust takes what a machine's TPM showed last for right: another boot chain, or another
// TPM, which enrols at its next boot.
func (e *Engine) Trust(ctx context.Context, name, who string) error {
	return e.operate(ctx, name, who, "trust", "", func(s State) (State, error) {
		rec := s.Status.TPM
		if rec == nil {
			return s, errors.New("no TPM of it is on record: it enrols when its ramdisk runs")
		}
		next := *rec
		switch {
		case rec.Other != nil:
			next = TPM{EK: rec.Other, Since: e.Now()}
		case rec.Quote != nil && tpm.Changed(rec.Chain, rec.Quote.chain()) != "":
			next.Chain = rec.Quote.chain()
		default:
			return s, errors.New("its TPM showed nothing that is not on record")
		}
		s.Status.TPM = &next
		s.Status.Findings = dropFindings(s.Status.Findings, tpmPrefix)
		return s, nil
	})
}

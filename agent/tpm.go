package agent

import (
	"context"
	"errors"
	"os"

	"recast/inventory"
	"recast/tpm"
)

// TPM is that of the machine; nil where the kernel shows none.
func (h Hardware) TPM() (*tpm.Chip, error) {
	switch h.read("/sys/class/tpm/tpm0/tpm_version_major") {
	case "":
		return nil, nil
	case "2":
	default:
		return nil, errors.New("it is a TPM 1.2, whose signatures nobody believes any more")
	}
	return tpm.Open(h.Root+"/dev/tpmrm0", func() ([]byte, error) {
		return os.ReadFile(h.Root + "/sys/kernel/security/tpm0/binary_bios_measurements")
	})
}

// enrol has the machine's TPM prove to the server that it is the one on record, or
// become it. A TPM that cannot is no error: the server is told why in the facts. Another
// one than on record is, since this is another machine then.
func (s *session) enrol(ctx context.Context, facts *inventory.Facts) error {
	s.noTPM = "no TPM is seen"
	chip, err := s.Machine.TPM()
	if chip == nil && err == nil {
		return nil
	}
	if err == nil {
		var refused error
		if err, refused = s.introduceTPM(ctx, chip); refused != nil {
			chip.Close()
			return refused
		}
	}
	if err == nil {
		s.chip = chip
		return nil
	}
	if chip != nil {
		chip.Close()
	}
	s.noTPM = printable(err.Error())
	facts.TPMError = s.noTPM
	s.Log("the TPM cannot be used: %s", s.noTPM)
	return nil
}

// introduceTPM returns why the TPM cannot be used, and what ends the boot.
func (s *session) introduceTPM(ctx context.Context, chip *tpm.Chip) (cannot, refused error) {
	var hello inventory.TPMHello
	if hello.EK, hello.Cert, cannot = chip.Endorsement(); cannot != nil {
		return cannot, nil
	}
	tell := func() (reply inventory.TPMReply, err error) {
		err = s.retry(ctx, "TPM", func() error {
			reply, err = s.client.TPM(ctx, hello)
			return err
		})
		return reply, err
	}
	reply, err := tell()
	if err != nil {
		return nil, err
	}
	if reply.Blob != nil {
		if err := chip.Load(reply.Blob); err == nil {
			return nil, nil
		}
		s.Log("the TPM was cleared since it was enrolled")
	}
	if hello.AK, cannot = chip.Make(); cannot != nil {
		return cannot, nil
	}
	if reply, err = tell(); err != nil {
		return nil, err
	}
	if reply.Refused == "" {
		if hello.Answer, cannot = chip.Answer(reply.Credential, reply.Secret); cannot != nil {
			return cannot, nil
		}
		if reply, err = tell(); err != nil {
			return nil, err
		}
	}
	if reply.Refused != "" {
		return errors.New("the server: " + reply.Refused), nil
	}
	s.Log("the TPM is enrolled")
	return nil, nil
}

// quote has the TPM say that this boot found the job's generation on the disk.
func (s *session) quote(job inventory.Job) *inventory.TPMQuote {
	if job.Quote == "" {
		return nil
	}
	if s.chip == nil {
		return &inventory.TPMQuote{Error: s.noTPM}
	}
	q, err := s.chip.Quote([]byte(job.Quote), job.Generation)
	if err != nil {
		s.Log("%v", err)
		return &inventory.TPMQuote{Error: printable(err.Error())}
	}
	q.Unified, q.Arguments = unified(s.Machine.Variables()), s.CommandLine
	s.Log("the TPM has signed that generation %s was read back", job.Generation.Short())
	return &q
}

// unified tells whether a stub started this kernel, and gave it its initrd: it says so in
// a variable that a restart forgets (systemd's Boot Loader Interface).
func unified(vars Variables) bool {
	if vars == nil {
		return false
	}
	_, err := vars.Get("StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	return err == nil
}

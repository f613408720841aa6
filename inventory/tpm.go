package inventory

// TPMKey is an attestation key, as the TPM that made it tells of it.
type TPMKey struct {
	// Blob is what only that TPM can load again.
	Blob []byte `json:"blob"`
	// Public is its TPMT_PUBLIC. The others prove that a TPM made it, and signs with it
	// nothing but what it says of itself.
	Public      []byte `json:"public"`
	Creation    []byte `json:"creation"`
	Attestation []byte `json:"attestation"`
	Signature   []byte `json:"signature"`
}

// TPMHello is what a ramdisk says of its machine's TPM before its inventory: first its
// endorsement key alone, and, where no attestation key is on record that it can load, a
// new one, and that again with the answer to the challenge.
type TPMHello struct {
	EK     []byte  `json:"ek"`               // public part, PKIX
	Cert   []byte  `json:"cert,omitempty"`   // its manufacturer's of it, X.509; nil: it holds none
	AK     *TPMKey `json:"ak,omitempty"`     // nil: which one is on record?
	Answer []byte  `json:"answer,omitempty"` // nil: challenge AK
}

// TPMReply answers it.
type TPMReply struct {
	// Blob is the key on record, "" none.
	Blob []byte `json:"blob,omitempty"`
	// Credential and Secret are the challenge: only the TPM that holds both keys can tell
	// what is in them.
	Credential []byte `json:"credential,omitempty"`
	Secret     []byte `json:"secret,omitempty"`
	// Refused is why this TPM is not taken; the boot goes on without it.
	Refused string `json:"refused,omitempty"`
	// Enrolled: the answer was right, and AK is on record.
	Enrolled bool `json:"enrolled,omitempty"`
}

// TPMQuote is a TPM's signed word on what was measured into its registers.
type TPMQuote struct {
	Quote     []byte `json:"quote,omitempty"`     // TPMS_ATTEST
	Signature []byte `json:"signature,omitempty"` // TPMT_SIGNATURE
	PCRs      []PCR  `json:"pcrs,omitempty"`      // that it is about
	// Log is the firmware's of what it measured; nil: it keeps none.
	Log []byte `json:"log,omitempty"`
	// Arguments are the kernel's, as it shows them.
	Arguments string `json:"arguments,omitempty"`
	// Unified: kernel and initrd came as one UEFI program, which firmware measures whole.
	Unified bool `json:"unified,omitempty"`
	// Error is why there is no quote; nothing else is set then.
	Error string `json:"error,omitempty"`
}

// PCR is a register of a TPM, of its SHA-256 bank.
type PCR struct {
	Index int    `json:"index"`
	Value Digest `json:"value"`
}

package bmc

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
)

// badAnswer says why an answer of a BMC is not believed. The text is a constant,
// so that it can key a counter. It matches ErrRejected.
type badAnswer string

func (b badAnswer) Error() string { return ErrRejected.Error() + ": " + string(b) }

func (b badAnswer) Is(target error) bool { return target == ErrRejected }

const (
	badIPMI        badAnswer = "IPMI: no packet of its session format"
	badDecode      badAnswer = "IPMI: a packet that cannot be decoded"
	badSessionless badAnswer = "IPMI: a packet without session inside a session"
	badAwaited     badAnswer = "IPMI: a payload type that is not awaited"
	badSession     badAnswer = "IPMI: a packet of another session"
	badLogin       badAnswer = "IPMI: a login message that is too short"
	badAlgorithms  badAnswer = "IPMI: algorithms that were not asked for"
	badClear       badAnswer = "IPMI: clear text inside a session"
	badCode        badAnswer = "IPMI: a wrong integrity code, or none"
	badRepeated    badAnswer = "IPMI: a sequence number seen before"
	badResponse    badAnswer = "IPMI: a response too short for its command"

	badSOL badAnswer = "IPMI: a console packet that is too short"

	badHTTP  badAnswer = "Redfish: neither TLS nor HTTP"
	badLong  badAnswer = "Redfish: an answer larger than 4 MiB"
	badEnd   badAnswer = "Redfish: an answer that ends early"
	badJSON  badAnswer = "Redfish: an answer that is no JSON object"
	badShape badAnswer = "Redfish: JSON of another shape"
	badLink  badAnswer = "Redfish: a link or redirect that leads elsewhere"

	badImage badAnswer = "Redfish: a screenshot that is no PNG"

	badPower badAnswer = "a power state without meaning"
	badPanic badAnswer = "an answer that breaks its decoder"
)

// badAnswerOf finds the bad answer behind an error, "" where there is none.
func badAnswerOf(err error) badAnswer {
	if err == nil {
		return ""
	}
	var why badAnswer
	switch {
	case errors.As(err, &why):
		return why
	case strings.Contains(err.Error(), "json: cannot unmarshal"): // gofish puts it into a text
		return badShape
	case notHTTP(err):
		return badHTTP
	case errors.Is(err, io.ErrUnexpectedEOF):
		return badEnd
	}
	return ""
}

// notHTTP reports whether a request failed because what came is no HTTP. net/http
// keeps most of these errors to itself, so their text has to do.
func notHTTP(err error) bool {
	var record tls.RecordHeaderError
	var protocol textproto.ProtocolError
	return errors.As(err, &record) || errors.As(err, &protocol) || errors.Is(err, http.ErrSchemeMismatch) ||
		strings.Contains(err.Error(), "malformed HTTP") || strings.Contains(err.Error(), "response headers exceeded")
}

// BadAnswers counts the answers of BMCs that are not believed, by reason. Its zero
// value is ready; nil counts nothing.
type BadAnswers struct {
	mu sync.Mutex
	n  map[badAnswer]uint64
}

func (b *BadAnswers) count(why badAnswer) {
	if b == nil || why == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n == nil {
		b.n = map[badAnswer]uint64{}
	}
	b.n[why]++
}

// Counts by reason, of which there are a few.
func (b *BadAnswers) Counts() map[string]uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	counts := map[string]uint64{}
	for why, n := range b.n {
		counts[string(why)] = n
	}
	return counts
}

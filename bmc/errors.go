package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"recast/inventory"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// PinError is a certificate that nobody vouched for. It matches ErrPin.
type PinError struct {
	Host string
	Seen inventory.Digest
	Want inventory.Digest // zero: nothing is pinned yet
}

func (e *PinError) Error() string {
	if e.Want == "" {
		return fmt.Sprintf("%v: no certificate is pinned for %s, which shows %s; compare it with what the BMC's own console shows, then set bmc.pin to it", ErrPin, e.Host, e.Seen)
	}
	return fmt.Sprintf("%v: %s shows %s, pinned is %s; if the certificate was replaced on purpose, set bmc.pin to the one shown", ErrPin, e.Host, e.Seen, e.Want)
}

func (e *PinError) Is(target error) bool { return target == ErrPin }

// AnswerError is a refusal in the BMC's own words. It matches its Reason.
type AnswerError struct {
	Reason error // one of the Err… of this package
	// Code is the message id of a Redfish answer as it was sent
	// ("IDRAC.2.8.SYS518"), or "completion code 0xc0", "RMCP+ status 0x01" over
	// IPMI; empty where the BMC gave none.
	Code    string
	Message string        // the vendor's text, one line; may be empty
	Status  int           // of HTTP; 0 over IPMI
	After   time.Duration // when the BMC wishes to be asked again; 0 it did not say
	what    string        // was asked: "PATCH /redfish/v1/…"
}

func (e *AnswerError) Error() string {
	text := e.Reason.Error()
	if e.what != "" {
		text = e.what + ": " + text
	}
	if e.Status != 0 {
		text += fmt.Sprintf(": status %d", e.Status)
	}
	if e.Code != "" && !strings.Contains(e.Message, e.Code) {
		text += ": " + e.Code
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	if e.After > 0 {
		text += fmt.Sprintf(": retry after %s", e.After.Round(time.Second))
	}
	return text
}

func (e *AnswerError) Unwrap() error { return e.Reason }

// RetryAfter is how long the BMC wishes to be left alone; 0 where it did not say.
func RetryAfter(err error) time.Duration {
	var answer *AnswerError
	if errors.As(err, &answer) {
		return answer.After
	}
	return 0
}

// afterMost bounds what a BMC may wish: a wrong clock makes years of a date.
const afterMost = 10 * time.Minute

// retryAfter reads a Retry-After header: seconds or a date (RFC 9110, 10.2.3).
func retryAfter(header string, now time.Time) time.Duration {
	var after time.Duration
	if n, err := strconv.ParseUint(strings.TrimSpace(header), 10, 31); err == nil {
		after = time.Duration(n) * time.Second
	} else if date, err := http.ParseTime(header); err == nil {
		after = date.Sub(now)
	}
	return min(max(after, 0), afterMost)
}

// reasons are the sentinels, in the order in which an error is matched.
var reasons = []error{ErrChangePassword, ErrLockedOut, ErrAuth, ErrPin, ErrUnreachable, ErrTimeout, ErrBusy, ErrUnsupported, ErrRejected, ErrUnverified}

// IsReason reports whether an error carries one of this package's reasons.
func IsReason(err error) bool {
	for _, r := range reasons {
		if errors.Is(err, r) {
			return true
		}
	}
	return false
}

// ended is what a call returns whose context is over: the caller's own
// cancellation stays that, a deadline is the BMC's slowness.
func ended(ctx context.Context, verb string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", verb, context.Canceled)
	}
	return fmt.Errorf("%s: %w: %w", verb, ErrTimeout, context.DeadlineExceeded)
}

// final reports whether asking again cannot help, or does harm: each further
// login with a refused password brings the account closer to its lock.
func final(err error) bool {
	return errors.Is(err, ErrAuth) || errors.Is(err, ErrLockedOut) || errors.Is(err, ErrPin) || errors.Is(err, ErrChangePassword)
}

// classified reports whether the error carries one of the reasons already.
func classified(err error) bool { return IsReason(err) || errors.Is(err, context.Canceled) }

// httpReasons is what an HTTP status from a Redfish service means. 405 and 501
// are verbs that the resource lacks; 409 is a state in the way that may pass.
var httpReasons = map[int]error{
	400: ErrRejected,
	401: ErrAuth,
	403: ErrAuth,
	404: ErrUnsupported,
	405: ErrUnsupported,
	406: ErrRejected,
	408: ErrTimeout,
	409: ErrBusy,
	410: ErrUnsupported,
	412: ErrRejected,
	415: ErrRejected,
	422: ErrRejected,
	428: ErrRejected,
	429: ErrBusy,
	500: ErrRejected,
	501: ErrUnsupported,
	502: ErrBusy,
	503: ErrBusy,
	504: ErrBusy,
	507: ErrBusy,
}

// messageReasons overrule the status by the message id of the standard
// registries (without version), because vendors choose the status freely.
var messageReasons = map[string]error{
	"Base.NoValidSession":                ErrAuth,
	"Base.InsufficientPrivilege":         ErrAuth,
	"Base.PasswordChangeRequired":        ErrChangePassword,
	"Base.ServiceTemporarilyUnavailable": ErrBusy,
	"Base.ServiceInUnknownState":         ErrBusy,
	"Base.ServiceShuttingDown":           ErrBusy,
	"Base.SessionLimitExceeded":          ErrBusy,
	"Base.ActionNotSupported":            ErrUnsupported,
	"Base.PropertyNotWritable":           ErrUnsupported,
	"Base.PropertyUnknown":               ErrUnsupported,
	"iLO.UnableToModifyDuringSystemPOST": ErrBusy,
	"iLO.InvalidOperationForSystemState": ErrBusy,
	"IDRAC.SYS518":                       ErrBusy,
	"IDRAC.RAC0218":                      ErrBusy, // all sessions are taken
	"Base.ResourceInUse":                 ErrBusy,
	"Base.ResourceInStandby":             ErrBusy,
	"Base.PropertyValueNotInList":        ErrUnsupported,
	"Base.ActionParameterValueConflict":  ErrBusy,
	"Base.ResourceAtUriUnauthorized":     ErrAuth,
	"Base.OperationTimeout":              ErrTimeout,
	"Base.AccessDenied":                  ErrAuth,
}

// lockedTexts are how vendors word a lock: there is no message id for it in the
// standard registries. iDRAC blocks the address that logs in from, not the account.
var lockedTexts = []string{"locked", "lockout", "lock out", "blocked", "too many login", "too many failed"}

// httpReason classifies an answer that is not a success.
func httpReason(status int, messageID, text string) error {
	r, known := messageReasons[plainMessageID(messageID)]
	if !known {
		r, known = httpReasons[status]
	}
	if text = strings.ToLower(messageID + " " + text); r == ErrAuth || status == http.StatusTooManyRequests {
		for _, locked := range lockedTexts {
			if strings.Contains(text, locked) {
				return ErrLockedOut
			}
		}
	}
	// A missing licence answers 403 too (Supermicro's OemLicenseNotPassed): taken for
	// a refused login it would end the session for what some resource costs extra.
	if r == ErrAuth && status == http.StatusForbidden && strings.Contains(text, "licens") {
		return ErrUnsupported
	}
	if known {
		return r
	}
	if status >= 500 {
		return ErrBusy
	}
	return ErrRejected
}

// plainMessageID drops the version from "Base.1.8.ActionNotSupported" and what
// stands before the registry in "#/Base.…".
func plainMessageID(id string) string {
	parts := strings.Split(id, ".")
	if len(parts) < 2 {
		return id
	}
	registry := parts[0]
	if i := strings.LastIndexAny(registry, "/#"); i >= 0 {
		registry = registry[i+1:]
	}
	return registry + "." + parts[len(parts)-1]
}

// rmcpReasons is what a status in the RMCP+ handshake means (IPMI 2.0, table
// 13-15). 0x01 and 0x0b are a full session table.
var rmcpReasons = map[types.RmcpStatusCode]error{
	types.RmcpStatusCodeNoResToCreateSess:          ErrBusy,
	types.RmcpStatusCodeNoResToCreateSessAtRole:    ErrBusy,
	types.RmcpStatusCodeInvalidSessionID:           ErrBusy,
	types.RmcpStatusCodeInactiveSessionID:          ErrBusy,
	types.RmcpStatusCodeInvalidAuthAlg:             ErrUnsupported,
	types.RmcpStatusCodeInvalidIntegrityAlg:        ErrUnsupported,
	types.RmcpStatusCodeNoMatchingAuthPayload:      ErrUnsupported,
	types.RmcpStatusCodeNoMatchingIntegrityPayload: ErrUnsupported,
	types.RmcpStatusCodeInvalidConfidentAlg:        ErrUnsupported,
	types.RmcpStatusCodeNoCipherSuiteMatch:         ErrUnsupported,
	types.RmcpStatusCodeUnauthorizedName:           ErrAuth,
	types.RmcpStatusCodeUnauthorizedGUID:           ErrAuth,
	types.RmcpStatusCodeUnauthorizedRoleOfPriLevel: ErrAuth,
	types.RmcpStatusCodeInvalidRole:                ErrAuth,
	types.RmcpStatusCodeInvalidNameLength:          ErrAuth,
	types.RmcpStatusCodeInvalidIntegrityCheckValue: ErrAuth,
}

// completionReasons is what a completion code means (IPMI 2.0, table 5-2).
var completionReasons = map[types.CompletionCode]error{
	types.CodeNodeBusy:                            ErrBusy,
	types.CodeInvalidCommand:                      ErrUnsupported,
	types.CodeInvalidCommandForLUN:                ErrUnsupported,
	types.CodeProcessTimeout:                      ErrTimeout,
	types.CodeOutOfSpace:                          ErrBusy,
	types.CodeParameterOutOfRange:                 ErrUnsupported,
	types.CodeRequestDataFieldInvalid:             ErrUnsupported,
	types.CodeCannotProvideResponse:               ErrBusy,
	types.CodeCannotExecuteDuplicatedRequest:      ErrRejected,
	types.CodeCannotProvideResponseFirmwareUpdate: ErrBusy,
	types.CodeCannotProvideResponseBMCInitialize:  ErrBusy,
	types.CodeDestinationUnavailable:              ErrBusy,
	types.CodeInsufficientPrivilege:               ErrRejected, // within a session: the password is right
	types.CodeNotSupported:                        ErrRejected, // "not supported in present state"
	types.CodeSubFnDisabled:                       ErrUnsupported,
	types.CodeParameterNotSupported:               ErrUnsupported,
}

// textReasons is the last resort: go-ipmi joins the errors of a handshake with
// %v, so only their text survives.
var textReasons = []struct {
	text   string
	reason error
}{
	{loginLost, ErrTimeout},
	{"RAKP authentication failed", ErrAuth},
	{"RMCP+ status 0x0d", ErrAuth},
	{"RMCP+ status 0x0e", ErrAuth},
	{"RMCP+ status 0x0a", ErrAuth},
	{"RMCP+ status 0x09", ErrAuth},
	{"RMCP+ status 0x0c", ErrAuth},
	{"RMCP+ status 0x0f", ErrAuth},
	{"RMCP+ status 0x01", ErrBusy},
	{"RMCP+ status 0x0b", ErrBusy},
	{"RMCP+ status 0x02", ErrBusy},
	{"RMCP+ status 0x08", ErrBusy},
	{"RMCP+ status 0x04", ErrUnsupported},
	{"RMCP+ status 0x05", ErrUnsupported},
	{"RMCP+ status 0x06", ErrUnsupported},
	{"RMCP+ status 0x07", ErrUnsupported},
	{"RMCP+ status 0x10", ErrUnsupported},
	{"RMCP+ status 0x11", ErrUnsupported},
	{"connection refused", ErrUnreachable},
	{"no route to host", ErrUnreachable},
	{"network is unreachable", ErrUnreachable},
	{"UDP read timed out", ErrTimeout},
	{"before UDP read deadline", ErrTimeout},
	{"deadline exceeded", ErrTimeout},
}

// reasonOf finds why a call failed below us; ErrRejected where nothing better
// is known, because then the BMC answered something that we cannot use.
func reasonOf(err error) error {
	for _, r := range reasons {
		if errors.Is(err, r) {
			return r
		}
	}
	if errors.Is(err, client.ErrRAKPAuthentication) {
		return ErrAuth
	}
	var rmcp *types.RmcpStatusError
	if errors.As(err, &rmcp) {
		if r, ok := rmcpReasons[rmcp.StatusCode()]; ok {
			return r
		}
		return ErrRejected
	}
	var response *types.ResponseError
	if errors.As(err, &response) {
		if r, ok := completionReasons[response.CompletionCode()]; ok {
			return r
		}
		return ErrRejected
	}
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		return ErrUnreachable
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return ErrUnreachable
	case errors.As(err, &op) && op.Op == "dial":
		return ErrUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return ErrTimeout // asked and not answered: it may have been done
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return ErrTimeout
	}
	text := err.Error()
	for _, t := range textReasons {
		if strings.Contains(text, t.text) {
			return t.reason
		}
	}
	if errors.As(err, &op) {
		return ErrUnreachable // the connection broke
	}
	return ErrRejected
}

// explain wraps a library's error in its reason, on one line.
func explain(verb string, err error) error {
	if err == nil {
		return nil
	}
	if classified(err) {
		return fmt.Errorf("%s: %w", verb, err)
	}
	reason := reasonOf(err)
	var rmcp *types.RmcpStatusError
	var response *types.ResponseError
	switch {
	case errors.As(err, &rmcp):
		return fmt.Errorf("%s: %w", verb, &AnswerError{Reason: reason, Message: oneLine(err),
			Code: fmt.Sprintf("RMCP+ status %#02x", uint8(rmcp.StatusCode()))})
	case errors.As(err, &response):
		return fmt.Errorf("%s: %w", verb, &AnswerError{Reason: reason, Message: oneLine(err),
			Code: fmt.Sprintf("completion code %#02x", uint8(response.CompletionCode()))})
	}
	return fmt.Errorf("%s: %w: %s", verb, reason, oneLine(err))
}

// oneLine squeezes the multi-line texts of the libraries.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	// What go-ipmi tried for its handshake is in the way of what the BMC said.
	if i := strings.LastIndex(text, "err: "); i >= 0 && strings.HasPrefix(text, "connect20 failed") {
		text = text[i+len("err: "):]
	}
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

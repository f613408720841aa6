package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"recast/inventory"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

func TestReasonOf(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, c := range []struct {
		err  error
		want error
	}{
		{client.ErrRAKPAuthentication, ErrAuth},
		{types.NewRmcpStatusError(types.RmcpStatusCodeUnauthorizedName), ErrAuth},
		{types.NewRmcpStatusError(types.RmcpStatusCodeNoResToCreateSess), ErrBusy},
		{types.NewRmcpStatusError(types.RmcpStatusCodeNoCipherSuiteMatch), ErrUnsupported},
		// What go-ipmi's Connect makes of them: only the text survives.
		{fmt.Errorf("connect20 failed, errs: %v", types.NewRmcpStatusError(types.RmcpStatusCodeUnauthorizedName)), ErrAuth},
		{fmt.Errorf("connect20 failed, errs: %v", types.NewRmcpStatusError(types.RmcpStatusCodeNoResToCreateSess)), ErrBusy},
		{fmt.Errorf("connect20 failed, errs: %v", types.NewRmcpStatusError(types.RmcpStatusCodeInvalidAuthAlg)), ErrUnsupported},
		{fmt.Errorf("connect20 failed, errs: %v", client.ErrRAKPAuthentication), ErrAuth},
		{types.NewResponseError(types.CodeNodeBusy, ""), ErrBusy},
		{types.NewResponseError(types.CodeInsufficientPrivilege, ""), ErrRejected},
		{types.NewResponseError(types.CodeInvalidCommand, ""), ErrUnsupported},
		{types.NewResponseError(types.CodeNotSupported, ""), ErrRejected},
		{types.NewResponseError(0x7e, ""), ErrRejected},
		{refused, ErrUnreachable},
		{&net.DNSError{Err: "no such host"}, ErrUnreachable},
		{syscall.EHOSTUNREACH, ErrUnreachable},
		{fmt.Errorf("udp: %w", context.DeadlineExceeded), ErrTimeout},
		{os.ErrDeadlineExceeded, ErrTimeout},
		{io.EOF, ErrTimeout},
		{syscall.ECONNRESET, ErrTimeout},
		{fmt.Errorf("x: %w", &PinError{}), ErrPin},
		{fmt.Errorf("connect20 failed, errs: %v", errRepeated), ErrTimeout},
		{errors.New("anything else"), ErrRejected},
	} {
		if got := reasonOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if err := explain("verb", c.err); !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("explain %v: %v, want one line of %v", c.err, err, c.want)
		}
	}
}

// Every text that stands for a status must be what the library prints for it.
func TestARefusedPasswordIsToldWithoutTheHandshake(t *testing.T) {
	lib := fmt.Errorf("connect20 failed after try all cipher suite ids ([17]), errs: \n%v",
		fmt.Errorf("cmd: rakp1 failed with cipher suite id (17), err: %w", client.ErrRAKPAuthentication))
	err := explain("log in to ipmi://10.9.0.1", lib)
	if want := fmt.Sprintf("log in to ipmi://10.9.0.1: %v: %v", ErrAuth, client.ErrRAKPAuthentication); err.Error() != want || !errors.Is(err, ErrAuth) {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestTextReasonsAgreeWithStatusReasons(t *testing.T) {
	for status, want := range rmcpReasons {
		text := fmt.Errorf("%v", types.NewRmcpStatusError(status))
		if got := reasonOf(text); got != want {
			t.Errorf("%v: %v, want %v", text, got, want)
		}
	}
}

func TestHTTPReason(t *testing.T) {
	for _, c := range []struct {
		status int
		id     string
		text   string
		want   error
	}{
		{401, "", "", ErrAuth},
		{403, "", "", ErrAuth},
		{403, "Base.1.8.PasswordChangeRequired", "", ErrChangePassword},
		{403, "SMC.1.0.OemLicenseNotPassed", "Not licensed to perform this request.", ErrUnsupported},
		{403, "iLO.2.14.LicenseKeyRequired", "", ErrUnsupported},
		{401, "", "The license of the account has ended", ErrAuth},
		{200, "Base.1.8.GeneralError", "", ErrRejected},
		{400, "", "", ErrRejected},
		{400, "Base.1.12.ActionNotSupported", "", ErrUnsupported},
		{400, "iLO.2.14.UnableToModifyDuringSystemPOST", "", ErrBusy},
		{400, "#/Base.1.0.PropertyUnknown", "", ErrUnsupported},
		{500, "IDRAC.2.7.SYS518", "", ErrBusy},
		{404, "", "", ErrUnsupported},
		{409, "", "", ErrBusy},
		{429, "", "", ErrBusy},
		{503, "", "", ErrBusy},
		{599, "", "", ErrBusy},
		{401, "Base.1.8.ResourceAtUriUnauthorized", "The account is locked out for 600 seconds.", ErrLockedOut},
		{403, "", "Access from this address is blocked after too many failed logins.", ErrLockedOut},
		{429, "", "Too many failed login attempts", ErrLockedOut},
		{503, "", "The setting is locked by a job", ErrBusy},
		{400, "", "The system lockdown blocked this change", ErrRejected},
		{418, "nonsense", "", ErrRejected},
	} {
		if got := httpReason(c.status, c.id, c.text); got != c.want {
			t.Errorf("%d %q: %v, want %v", c.status, c.id, got, c.want)
		}
	}
}

func TestRetryAfterIsSecondsOrADate(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                              0,
		"5":                             5 * time.Second,
		" 30 ":                          30 * time.Second,
		"-1":                            0,
		"soon":                          0,
		"86400":                         afterMost,
		"999999999999999999":            0,
		"Sun, 22 Nov 2026 12:00:30 GMT": 30 * time.Second,
		"Sun, 22 Nov 2026 11:59:30 GMT": 0,
		"Sun, 22 Nov 2099 12:00:00 GMT": afterMost,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func TestRefusalsCarryTheBMCsOwnWords(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want AnswerError
	}{
		{"completion code", types.NewResponseError(types.CodeNodeBusy, "x"), AnswerError{Reason: ErrBusy, Code: "completion code 0xc0"}},
		{"RMCP+ status", types.NewRmcpStatusError(types.RmcpStatusCodeNoResToCreateSess), AnswerError{Reason: ErrBusy, Code: "RMCP+ status 0x01"}},
		{"Redfish", &AnswerError{Reason: ErrBusy, Code: "IDRAC.2.8.SYS518", Message: "wait", Status: 503, After: time.Minute},
			AnswerError{Reason: ErrBusy, Code: "IDRAC.2.8.SYS518", After: time.Minute}},
	} {
		err := fmt.Errorf("again: %w", explain("verb", c.err))
		var got *AnswerError
		if !errors.As(err, &got) || got.Reason != c.want.Reason || got.Code != c.want.Code || got.Message == "" || RetryAfter(err) != c.want.After {
			t.Errorf("%s: %v, %+v", c.name, err, got)
		}
		if !errors.Is(err, c.want.Reason) || !strings.Contains(err.Error(), got.Message) {
			t.Errorf("%s: %v does not tell its reason and message", c.name, err)
		}
	}
}

func TestTheMessageThatSaysMostIsTold(t *testing.T) {
	body := `{"error":{"code":"Base.1.8.GeneralError","message":"See ExtendedInfo.","@Message.ExtendedInfo":[%s]}}`
	info := func(id string) string { return fmt.Sprintf(`{"MessageId":%q,"Message":"of %s"}`, id, id) }
	for _, c := range []struct{ infos, want string }{
		{"", "Base.1.8.GeneralError"},
		{info("Base.1.8.GeneralError"), "Base.1.8.GeneralError"},
		{info("Base.1.8.GeneralError") + "," + info("Vendor.1.0.Odd"), "Vendor.1.0.Odd"},
		{info("Vendor.1.0.Odd") + "," + info("IDRAC.2.8.SYS518"), "IDRAC.2.8.SYS518"},
		{info("Vendor.1.0.Odd") + "," + info("Vendor.1.0.Odder"), "Vendor.1.0.Odd"},
	} {
		if id, text := extendedInfo(fmt.Appendf(nil, body, c.infos)); id != c.want || text == "" {
			t.Errorf("%s: %q, %q; want %q", c.infos, id, text, c.want)
		}
	}
}

func TestPinErrorSaysWhatToDo(t *testing.T) {
	seen, want := inventory.DigestOf([]byte("a")), inventory.DigestOf([]byte("b"))
	for _, err := range []error{&PinError{Host: "h:443", Seen: seen}, &PinError{Host: "h:443", Seen: seen, Want: want}} {
		if !errors.Is(err, ErrPin) || !strings.Contains(err.Error(), seen.String()) || !strings.Contains(err.Error(), "bmc.pin") {
			t.Errorf("%v", err)
		}
	}
}

func TestPowerStateWordsOfVendors(t *testing.T) {
	for text, want := range map[string]PowerState{
		"On": PowerOn, "Off": PowerOff, "PoweringOn": PowerOn, "PoweringOff": PowerOn, "Paused": PowerOn,
		" off\n": PowerOff, "": PowerUnknown, "Unknown": PowerUnknown, "Reset": PowerUnknown,
	} {
		if got := powerState(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestChooseReset(t *testing.T) {
	for _, c := range []struct {
		state   string
		allowed string
		want    string
	}{
		{"on", "", "On"},
		{"off", "", "ForceOff"},
		{"soft", "", "GracefulShutdown"},
		{"on", "PushPowerButton ForceOn On", "On"},
		{"on", "PushPowerButton ForceOn", "ForceOn"},
		{"on", "PushPowerButton ForceOff", "PushPowerButton"},
		{"soft", "ForceOff PushPowerButton", "PushPowerButton"},
		{"off", "ForceOff GracefulShutdown", "ForceOff"},
		{"off", "PushPowerButton GracefulShutdown", ""}, // neither cuts power
		{"soft", "ForceOff On", ""},
	} {
		got, err := chooseReset(c.state, strings.Fields(c.allowed))
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s of %q: %q, %v; want %q", c.state, c.allowed, got, err, c.want)
		}
	}
}

func FuzzExtendedInfo(f *testing.F) {
	f.Add([]byte(`{"error":{"code":"Base.1.8.GeneralError","message":"m","@Message.ExtendedInfo":[{"MessageId":"Base.1.8.X"}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		id, text := extendedInfo(body)
		_ = httpReason(400, id, text)
	})
}

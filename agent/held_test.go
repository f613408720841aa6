package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The server gives an address whose time is over to somebody else, so a machine that
// waits in the ramdisk renews it.
func TestRamdiskKeepsItsAddress(t *testing.T) {
	silent := errors.New("no answer")
	for _, tt := range []struct {
		name    string
		renewal []error // of each in turn; nil for an hour more
		asked   []error
		want    string
	}{
		{"renewed at half time", []error{nil, nil}, nil, "30m0s renew 30m0s renew"},
		{"an answer is lost", []error{silent, nil, nil}, nil, "30m0s renew 7m30s renew 30m0s renew"},
		{"refused", []error{errRefused, nil}, []error{nil}, "30m0s renew ask 30m0s renew"},
		{"refused, and there is no other", []error{errRefused, errRefused, nil}, []error{silent, nil}, "30m0s renew ask 7m30s renew ask 30m0s renew"},
		{"over", []error{silent, silent, silent, silent, silent, nil}, []error{nil}, "30m0s renew 7m30s renew 7m30s renew 7m30s renew 7m30s renew ask 30m0s renew"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var did []string
			var one func(what string, from *[]error) func(context.Context) (held, error)
			one = func(what string, from *[]error) func(context.Context) (held, error) {
				return func(context.Context) (held, error) {
					did = append(did, what)
					err := (*from)[0]
					*from = (*from)[1:]
					if len(tt.renewal) == 0 {
						cancel()
					}
					return held{life: time.Hour, renew: one("renew", &tt.renewal)}, err
				}
			}
			sleep := func(ctx context.Context, d time.Duration) error {
				did = append(did, fmt.Sprint(d))
				return ctx.Err()
			}
			held{life: time.Hour, renew: one("renew", &tt.renewal)}.keep(ctx, sleep, one("ask", &tt.asked), t.Logf)
			if got := strings.Join(did, " "); got != tt.want {
				t.Errorf("did %s, want %s", got, tt.want)
			}
		})
	}
	held{}.keep(t.Context(), nil, nil, t.Logf) // given for ever
}

package bmc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Accounts is a Client that changes who may log in. Those of Dial and Fake do.
type Accounts interface {
	// SetAccount gives a user a password. A user that is not there is made, with the
	// rights of the one who asks. Asking again does no harm. Whether it was done, only
	// a login with the new password shows.
	SetAccount(ctx context.Context, user string, password Secret) error
}

var (
	_ Accounts = (*session)(nil)
	_ Accounts = (*Fake)(nil)
)

// NewPassword is one that every BMC takes: 16 characters, which older IPMI stores
// whole, of three kinds, as some vendors want. 94 bits of them are random.
func NewPassword() Secret {
	const kinds = "ABCDEFGHJKLMNPQRSTUVWXYZ" + "abcdefghijkmnopqrstuvwxyz" + "23456789"
	for {
		p := make([]byte, 16)
		for i := range p {
			n, err := rand.Int(rand.Reader, big.NewInt(int64(len(kinds))))
			if err != nil {
				panic(err) // crypto/rand never fails
			}
			p[i] = kinds[n.Int64()]
		}
		s := string(p)
		if strings.ContainsAny(s, kinds[:24]) && strings.ContainsAny(s, kinds[24:49]) && strings.ContainsAny(s, kinds[49:]) {
			return Secret(s)
		}
	}
}

// CheckUser refuses a name that not every BMC can hold.
func CheckUser(user string) error {
	if user == "" || len(user) > ipmiUserMost || strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
		return fmt.Errorf("user %q: want 1 to %d printable characters, without blanks and colons", user, ipmiUserMost)
	}
	return nil
}

func (s *session) SetAccount(ctx context.Context, user string, password Secret) error {
	d, ok := s.seen.driver.(interface {
		setAccount(context.Context, string, Secret) error
	})
	verb := fmt.Sprintf("set the password of %q", user)
	if !ok {
		return fmt.Errorf("%s: %w", verb, ErrUnsupported)
	}
	return s.call(ctx, verb, func(ctx context.Context) error { return notAllowed(d.setAccount(ctx, user, password)) })
}

// notAllowed tells a right that the account lacks from a password that is wrong:
// after that one nobody logs in any more.
func notAllowed(err error) error {
	var answer *AnswerError
	if errors.As(err, &answer) && answer.Status == http.StatusForbidden && errors.Is(err, ErrAuth) && !errors.Is(err, ErrLockedOut) {
		answer.Reason = ErrRejected
		return answer
	}
	var response *types.ResponseError
	if errors.As(err, &response) && response.CompletionCode() == types.CodeInsufficientPrivilege {
		return fmt.Errorf("%w: the account may not change accounts: %s", ErrRejected, oneLine(err))
	}
	return err
}

// redfishUser is a ManagerAccount.
type redfishUser struct {
	User    text  `json:"UserName"`
	Role    text  `json:"RoleId"`
	Enabled *bool `json:"Enabled"`
}

func (d *redfishDriver) setAccount(ctx context.Context, user string, password Secret) error {
	return d.inSession(ctx, func() error {
		if at := d.transport.mustChange(); at != "" {
			// Nothing else is to be seen before (DSP0266, 13.2.6.1).
			if user != d.target.User {
				return fmt.Errorf("%w: its own first, before %q can have one", ErrChangePassword, user)
			}
			return d.setUser(ctx, at, map[string]any{"Password": password.Reveal()})
		}
		return d.giveAccount(ctx, user, password)
	})
}

func (d *redfishDriver) giveAccount(ctx context.Context, user string, password Secret) error {
	var root struct {
		Service redfishLink `json:"AccountService"`
	}
	if _, err := d.get(ctx, "/redfish/v1/", &root); err != nil {
		return err
	}
	var service struct {
		Accounts redfishLink `json:"Accounts"`
	}
	if root.Service.ID == "" {
		return fmt.Errorf("%w: its service root lists no accounts", ErrUnsupported)
	}
	if _, err := d.get(ctx, d.local(root.Service.ID), &service); err != nil {
		return err
	}
	accounts := d.local(service.Accounts.ID)
	uris, err := d.members(ctx, accounts)
	if err != nil {
		return err
	}
	role, free := "Administrator", ""
	for _, uri := range uris {
		var a redfishUser
		if _, err := d.get(ctx, uri, &a); gone(err) {
			continue
		} else if err != nil {
			return err
		}
		switch {
		case string(a.User) == user:
			change := map[string]any{"Password": password.Reveal()}
			if user != d.target.User && a.Enabled != nil && !*a.Enabled {
				change["Enabled"] = true
			}
			return d.setUser(ctx, uri, change)
		case string(a.User) == d.target.User && a.Role != "":
			role = string(a.Role)
		case a.User == "" && free == "" && !strings.HasSuffix(uri, "/1"): // the first slot is nobody's (iDRAC)
			free = uri
		}
	}
	change := map[string]any{"UserName": user, "Password": password.Reveal(), "RoleId": role, "Enabled": true}
	err = d.write(ctx, http.MethodPost, accounts, "", change)
	if errors.Is(err, ErrUnsupported) && free != "" {
		return d.setUser(ctx, free, change)
	}
	return err
}

// setUser changes one account. The etag is read just before: some count logins in it.
func (d *redfishDriver) setUser(ctx context.Context, uri string, change map[string]any) error {
	var a redfishUser
	header, err := d.get(ctx, uri, &a)
	if err != nil {
		return err
	}
	return d.patch(ctx, uri, header.Get("ETag"), change)
}

// ipmiUsersMost are the accounts that the protocol has room for.
const ipmiUsersMost = 63

func (d *ipmiDriver) setAccount(ctx context.Context, user string, password Secret) error {
	if len(password) > ipmiPasswordMost {
		return fmt.Errorf("%w: an IPMI password has at most %d bytes", ErrUnsupported, ipmiPasswordMost)
	}
	id, free, err := d.findUser(ctx, user)
	if err != nil {
		return err
	}
	do := func(f func(*client.Client) error) {
		if err == nil {
			err = d.with(ctx, 0, f)
		}
	}
	made := id == 0
	if made {
		if id = free; id == 0 {
			return fmt.Errorf("%w: all its accounts are taken", ErrRejected)
		}
		do(func(lib *client.Client) error { _, err := lib.SetUsername(ctx, id, user); return err })
	}
	// The length that it is stored with is part of the password (22.30).
	do(func(lib *client.Client) error {
		_, err := lib.SetUserPassword(ctx, id, password.Reveal(), len(password) > 16)
		return err
	})
	if user != d.user {
		do(func(lib *client.Client) error {
			_, err := lib.SetUserAccess(ctx, &app.SetUserAccessRequest{EnableChanging: true, EnableIPMIMessaging: true,
				ChannelNumber: ipmiThisLAN, UserID: id, MaxPrivLevel: ipmiAdmin})
			return err
		})
		do(func(lib *client.Client) error { return lib.EnableUser(ctx, id) })
	}
	return err
}

// findUser is the account of a name, 0 where there is none, and the first free one.
func (d *ipmiDriver) findUser(ctx context.Context, user string) (id, free uint8, err error) {
	for n := uint8(1); n <= ipmiUsersMost; n++ {
		var name string
		most := uint8(ipmiUsersMost)
		err := d.with(ctx, ipmiRetries, func(lib *client.Client) error {
			if n == 1 {
				access, err := lib.GetUserAccess(ctx, ipmiThisLAN, n)
				if err != nil {
					return err
				}
				most = access.MaxUsersIDCount
			}
			answer, err := lib.GetUsername(ctx, n)
			if err == nil {
				name = strings.TrimRight(answer.Username, "\x00 ")
			}
			return unlessAnswered(err) // an empty one is refused
		})
		switch {
		case err != nil:
			return 0, 0, err
		case name == user:
			return n, 0, nil
		case name == "" && free == 0 && n > 1:
			free = n
		}
		if n == 1 {
			free = 0
		}
		if n >= most {
			break
		}
	}
	return 0, free, nil
}

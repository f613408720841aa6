package testenv

import (
	"crypto/subtle"
	"net/http"
	"slices"
	"strconv"
	"time"
)

const (
	redfishAccountService = redfishRoot + "/AccountService"
	redfishAccounts       = redfishAccountService + "/Accounts"
	redfishRoles          = redfishAccountService + "/Roles"
)

// redfishAccount is one user. Guarded by RedfishBMC.stateMu.
type redfishAccount struct {
	id, user, password, role string
	enabled, mustChange      bool
}

func (a *redfishAccount) path() string { return redfishAccounts + "/" + a.id }

// redfishPrivileges are the predefined roles (DSP0266, 13.4.2).
var redfishPrivileges = map[string][]string{
	"Administrator": {"Login", "ConfigureManager", "ConfigureUsers", "ConfigureComponents", "ConfigureSelf"},
	"Operator":      {"Login", "ConfigureComponents", "ConfigureSelf"},
	"ReadOnly":      {"Login", "ConfigureSelf"},
}

var redfishRoleNames = []string{"Administrator", "Operator", "ReadOnly"}

const (
	redfishPasswordLeast = 6
	redfishPasswordMost  = 40
)

func redfishSame(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// account finds a user; the lock is held.
func (b *RedfishBMC) account(user string) *redfishAccount {
	for _, a := range b.accounts {
		if a.user == user && user != "" {
			return a
		}
	}
	return nil
}

// allows is a login beside the tree's.
func (b *RedfishBMC) allows(user, password string) bool {
	allowed := b.login(user)
	b.stateMu.Lock()
	a := b.account(user)
	good := a != nil && a.enabled && !a.mustChange && redfishSame(a.password, password)
	b.stateMu.Unlock()
	if allowed && good {
		b.loggedIn()
	}
	return allowed && good
}

// Password is the one that a user has now; "" for nobody.
func (b *RedfishBMC) Password(user string) string {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	if a := b.account(user); a != nil {
		return a.password
	}
	return ""
}

// allowed judges the privilege for a change; false: the answer was sent.
func (c *redfishCall) allowed(resource *redfishResource) bool {
	b := c.b
	b.stateMu.Lock()
	privileges, user := redfishPrivileges[c.account.role], c.account.user
	b.stateMu.Unlock()
	need := "ConfigureComponents"
	if resource.admin {
		need = "ConfigureManager"
	}
	if slices.Contains(privileges, need) || resource.own != "" && resource.own == user {
		return true
	}
	c.refuse(http.StatusForbidden, "InsufficientPrivilege")
	return false
}

func (b *RedfishBMC) accountService([]string) *redfishResource {
	return &redfishResource{
		admin: true,
		get: func() map[string]any {
			faults := b.now()
			fields := map[string]any{
				"ServiceEnabled": true, "Status": redfishHealthy(),
				"Accounts": redfishID(redfishAccounts), "Roles": redfishID(redfishRoles),
				"MinPasswordLength": redfishPasswordLeast, "MaxPasswordLength": redfishPasswordMost,
				"HTTPBasicAuth":           redfishEither(b.options.NoBasic, "Disabled", "Enabled"),
				"AccountLockoutThreshold": faults.LockAfter,
			}
			if faults.LockAfter > 0 {
				fields["AccountLockoutDuration"] = int(faults.LockFor / time.Second)
			}
			return redfishNew(redfishAccountService, "#AccountService.v1_18_1.AccountService", "AccountService", "Account Service", fields)
		},
	}
}

func redfishEither(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}

func (b *RedfishBMC) roleCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		var members []string
		for _, name := range redfishRoleNames {
			members = append(members, redfishRoles+"/"+name)
		}
		return redfishCollection(redfishRoles, "Role", members)
	}}
}

func (b *RedfishBMC) roleAt(ids []string) *redfishResource {
	privileges, ok := redfishPrivileges[ids[0]]
	if !ok {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishRoles+"/"+ids[0], "#Role.v1_3_3.Role", ids[0], ids[0]+" role", map[string]any{
			"RoleId": ids[0], "IsPredefined": true, "AssignedPrivileges": privileges,
		})
	}}
}

func (b *RedfishBMC) accountCollection([]string) *redfishResource {
	r := &redfishResource{admin: true, get: func() map[string]any {
		b.stateMu.Lock()
		defer b.stateMu.Unlock()
		var members []string
		for _, a := range b.accounts {
			members = append(members, a.path())
		}
		return redfishCollection(redfishAccounts, "ManagerAccount", members)
	}}
	if b.options.AccountSlots == 0 {
		r.post = b.createAccount
	}
	return r
}

// redfishAccountChange is what a client may write of an account.
type redfishAccountChange struct {
	UserName, Password, RoleId *string
	Enabled, Locked            *bool
	PasswordChangeRequired     *bool
	AccountTypes               *[]string
	Name, Description          *string
}

// judge refuses a change of the account; the lock is held. It returns a message
// and its arguments, or "".
func (ch redfishAccountChange) judge(b *RedfishBMC, a *redfishAccount) (string, []string) {
	if ch.UserName != nil {
		if other := b.account(*ch.UserName); other != nil && other != a {
			return "ResourceAlreadyExists", []string{"ManagerAccount", "UserName", *ch.UserName}
		}
		if len(*ch.UserName) > 16 {
			return "PropertyValueFormatError", []string{*ch.UserName, "UserName"}
		}
	}
	if ch.Password != nil && (len(*ch.Password) < redfishPasswordLeast || len(*ch.Password) > redfishPasswordMost) {
		return "PropertyValueFormatError", []string{"***", "Password"}
	}
	if ch.RoleId != nil {
		if _, ok := redfishPrivileges[*ch.RoleId]; !ok {
			return "PropertyValueNotInList", []string{*ch.RoleId, "RoleId"}
		}
	}
	if ch.AccountTypes != nil && !slices.Equal(*ch.AccountTypes, []string{"Redfish"}) {
		return "PropertyValueNotInList", []string{"", "AccountTypes"}
	}
	return "", nil
}

// apply makes it; the lock is held. A new password ends the account's sessions.
func (ch redfishAccountChange) apply(b *RedfishBMC, a *redfishAccount, keep string) {
	if ch.UserName != nil {
		a.user = *ch.UserName
	}
	if ch.RoleId != nil {
		a.role = *ch.RoleId
	}
	if ch.Enabled != nil {
		a.enabled = *ch.Enabled
	}
	if ch.Password != nil {
		a.password, a.mustChange = *ch.Password, false
	}
	if ch.PasswordChangeRequired != nil {
		a.mustChange = *ch.PasswordChangeRequired
	}
	if ch.Password != nil || !a.enabled {
		b.sessions = slices.DeleteFunc(b.sessions, func(s *redfishSession) bool { return s.user == a.user && s.id != keep })
	}
}

func (b *RedfishBMC) createAccount(c *redfishCall) {
	var change redfishAccountChange
	if !c.read(&change) {
		return
	}
	for name, v := range map[string]*string{"UserName": change.UserName, "Password": change.Password, "RoleId": change.RoleId} {
		if v == nil || *v == "" {
			c.refuse(http.StatusBadRequest, "PropertyMissing", name)
			return
		}
	}
	b.stateMu.Lock()
	message, args := change.judge(b, nil)
	var a *redfishAccount
	if message == "" {
		b.nextAccount++
		a = &redfishAccount{id: strconv.Itoa(b.nextAccount), enabled: true}
		change.apply(b, a, "")
		b.accounts = append(b.accounts, a)
	}
	b.stateMu.Unlock()
	if message != "" {
		c.refuse(http.StatusBadRequest, message, args...)
		return
	}
	b.record("set-account", "create "+*change.UserName, true)
	c.w.Header().Set("Location", a.path())
	c.reply(http.StatusCreated, b.accountResource(a))
}

func (b *RedfishBMC) accountResource(a *redfishAccount) map[string]any {
	faults := b.now()
	b.mu.Lock()
	locked := faults.LockAfter > 0 && b.failed >= faults.LockAfter
	b.mu.Unlock()
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	return redfishNew(a.path(), "#ManagerAccount.v1_14_1.ManagerAccount", a.id, "User Account", map[string]any{
		"UserName": a.user, "Password": nil, "RoleId": a.role, "Enabled": a.enabled, "Locked": locked,
		"PasswordChangeRequired": a.mustChange, "AccountTypes": []string{"Redfish"},
		"Links": map[string]any{"Role": redfishID(redfishRoles + "/" + a.role)},
	})
}

func (b *RedfishBMC) accountAt(ids []string) *redfishResource {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	i := slices.IndexFunc(b.accounts, func(a *redfishAccount) bool { return a.id == ids[0] })
	if i < 0 {
		return nil
	}
	a := b.accounts[i]
	r := &redfishResource{
		admin: true,
		own:   a.user,
		get:   func() map[string]any { return b.accountResource(a) },
		patch: func(c *redfishCall) { b.changeAccount(c, a) },
	}
	if b.options.AccountSlots == 0 {
		r.remove = func(c *redfishCall) { b.removeAccount(c, a) }
	}
	return r
}

func (b *RedfishBMC) changeAccount(c *redfishCall, a *redfishAccount) {
	var change redfishAccountChange
	if !c.read(&change) {
		return
	}
	b.stateMu.Lock()
	message, args := change.judge(b, a)
	status := http.StatusBadRequest
	// ConfigureSelf is for the password alone (DSP0266, 13.4.3).
	if own := change; message == "" && !slices.Contains(redfishPrivileges[c.account.role], "ConfigureUsers") {
		own.Password = nil
		if own != (redfishAccountChange{}) {
			message, status = "InsufficientPrivilege", http.StatusForbidden
		}
	}
	if message == "" && b.lastAdministrator(a) && (change.Enabled != nil && !*change.Enabled || change.RoleId != nil && *change.RoleId != "Administrator" || change.UserName != nil && *change.UserName == "") {
		message = "ResourceCannotBeDeleted"
	}
	if message == "" {
		change.apply(b, a, c.session)
	}
	name := a.user
	b.stateMu.Unlock()
	if message != "" {
		c.refuse(status, message, args...)
		return
	}
	detail := "change " + name
	if change.Password != nil {
		detail += ": password"
	}
	b.record("set-account", detail, true)
	if c.faults.RejectAfter {
		c.fail(http.StatusBadRequest, "GeneralError")
		return
	}
	c.reply(http.StatusOK, b.accountResource(a))
}

// lastAdministrator tells whether nobody else could change accounts; the lock is held.
func (b *RedfishBMC) lastAdministrator(a *redfishAccount) bool {
	return !slices.ContainsFunc(b.accounts, func(o *redfishAccount) bool {
		return o != a && o.enabled && o.user != "" && o.role == "Administrator"
	})
}

func (b *RedfishBMC) removeAccount(c *redfishCall, a *redfishAccount) {
	b.stateMu.Lock()
	last := b.lastAdministrator(a)
	if !last {
		b.accounts = slices.DeleteFunc(b.accounts, func(o *redfishAccount) bool { return o == a })
		b.sessions = slices.DeleteFunc(b.sessions, func(s *redfishSession) bool { return s.user == a.user })
	}
	b.stateMu.Unlock()
	if last {
		c.refuse(http.StatusBadRequest, "ResourceCannotBeDeleted")
		return
	}
	b.record("set-account", "delete "+a.user, true)
	c.w.WriteHeader(http.StatusNoContent)
}

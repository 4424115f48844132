-- Whether this user sees what other users' sessions do. One that cannot read the privileges of others sees its own here.
SELECT EXISTS (SELECT 1 FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'PROCESS')

#!/bin/sh
# Entry point of the images of MariaDB and MySQL that .ci/database-image builds. Understands the part of the official
# images' contract that the tests use: MARIADB_ROOT_PASSWORD or MYSQL_ROOT_PASSWORD (required), MARIADB_DATABASE or
# MYSQL_DATABASE, and server options given as the command.
set -eu

data=/var/lib/mysql
run=/run/mysqld
first=$run/first.sql
password=${MARIADB_ROOT_PASSWORD:-${MYSQL_ROOT_PASSWORD:-}}
database=${MARIADB_DATABASE:-${MYSQL_DATABASE:-}}
server=$(command -v mariadbd || command -v mysqld)

as_mysql() {
    setpriv --reuid mysql --regid mysql --init-groups "$@"
}

# The core packages make neither the user nor folders. MySQL does not start without the last one, its secure_file_priv.
prepare() {
    id mysql >/dev/null 2>&1 || useradd --system --user-group --no-create-home mysql
    install -d -o mysql -g mysql -m 750 "$data" "$run" /var/lib/mysql-files
}

init() {
    if [ -z "$password" ]; then
        echo "MARIADB_ROOT_PASSWORD or MYSQL_ROOT_PASSWORD is not set" >&2
        exit 1
    fi
    case $server in
        */mariadbd) as_mysql mariadb-install-db --no-defaults --datadir="$data" --skip-test-db \
            --auth-root-authentication-method=normal ;;
        *) as_mysql "$server" --no-defaults --initialize-insecure --datadir="$data" ;;
    esac
    (umask 077 && statements >"$first")
    chown mysql:mysql "$first"
}

# One a line. The server runs them before it listens.
statements() {
    for host in localhost %; do
        echo "CREATE USER IF NOT EXISTS 'root'@'$host' IDENTIFIED BY '$(quoted "$password")';"
        echo "ALTER USER 'root'@'$host' IDENTIFIED BY '$(quoted "$password")';"
        echo "GRANT ALL PRIVILEGES ON *.* TO 'root'@'$host' WITH GRANT OPTION;"
    done
    [ -z "$database" ] || echo "CREATE DATABASE IF NOT EXISTS \`$database\`;"
}

quoted() {
    printf %s "$1" | sed "s/[\\\\']/\\\\&/g"
}

prepare
case ${1:-} in mariadbd | mysqld) shift ;; esac
if [ -d "$data/mysql" ]; then
    rm -f "$first"
else
    init
    set -- --init-file="$first" "$@"
fi
unset MARIADB_ROOT_PASSWORD MYSQL_ROOT_PASSWORD
exec setpriv --reuid mysql --regid mysql --init-groups "$server" --no-defaults --datadir="$data" \
    --socket="$run/mysqld.sock" --pid-file="$run/mysqld.pid" --bind-address='*' --skip-name-resolve "$@"

